"""The PyTorch world: name tables, import and export."""
