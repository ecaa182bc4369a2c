"""How an ArrayRecord file is opened, and its records by number through a bounded number of open readers."""

from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from dualtoken_jax.data.cache import Cache
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.storage import Traffic, is_remote

READERS = 32  # files kept open, each with its own small index in memory
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # what its documentation advises for random access


class ArrayRecords:
    """Thread-safe; pickles without its readers. Reads local files and gs://, which is what the library can."""

    def __init__(self, traffic: Traffic) -> None:
        """`traffic` counts one request per record."""
        self._readers = Cache(READERS)
        self._traffic = traffic

    def read(self, path: str, positions: list[int], records: int | None = None) -> list[bytes | BadImage]:
        """The records at `positions` of a file that has `records`; BadImage for one whose own hash does not agree.

        Raises OSError where the file cannot be read, ValueError where it is another one.
        """
        reader = self._readers.get(path, lambda: open_reader(path, records))
        try:
            found = reader.read(positions)
        except RuntimeError as error:
            self._readers.forget(path)  # it stays broken, whatever the file does
            if len(positions) > 1:  # one by one, to lose only what is lost
                return [self.read(path, [position], records)[0] for position in positions]
            if not is_remote(path):
                with Path(path).open("rb") as file:  # OSError where it is the storage that fails
                    file.read(1)
            return [BadImage("damaged-record", str(error), f"{path}/{positions[0]}")]
        for record in found:
            self._traffic.add(len(record))
        return found

    def close(self) -> None:
        """Closes the files; reading goes on opening them again."""
        self._readers.clear()


def open_reader(path: str, records: int | None = None) -> ArrayRecordReader:
    """The file, which has `records` where that is given.

    Raises OSError where it cannot be opened, ValueError where it is another one or out of the library's reach.
    """
    if is_remote(path) and not path.startswith("gs://"):
        raise ValueError(f"{path}: ArrayRecord files are read from local disks and gs:// only; copy or mount them")
    reader = ArrayRecordReader(path, options=_OPTIONS, file_reader_buffer_size=32 * 1024)
    if not reader.ok():
        raise OSError(f"{path} cannot be opened: it is not there, or no whole ArrayRecord file")
    if records is not None and reader.num_records() != records:
        raise ValueError(f"{path} has {reader.num_records()} records instead of {records}: prepare the dataset again")
    return reader
