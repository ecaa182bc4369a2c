"""A plan's figures: FLOPs against hand counts, the compiled program's text, memory, advice, the command."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import python, tiny_config
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dualtoken_jax.config import teacher_config
from dualtoken_jax.models.quantizer import QuantizerConfig, init_codebook, quantize_and_update
from dualtoken_jax.planning import chips, flops, hlo, step, topology
from dualtoken_jax.planning.advice import advice, fitting_rows
from dualtoken_jax.planning.collectives import Collective, collectives
from dualtoken_jax.planning.figures import Plan, Planner
from dualtoken_jax.planning.flops import Flops
from dualtoken_jax.planning.report import line, report
from dualtoken_jax.planning.roofline import network_seconds, roofline
from dualtoken_jax.planning.sweep import candidates, speed, sweep
from dualtoken_jax.planning.traffic import traffic
from dualtoken_jax.sharding import AXES, BATCH, MeshConfig

_SPEC = importlib.util.spec_from_file_location("plan_table", Path(__file__).parents[1] / "benchmarks" / "plan_table.py")
plan_table = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(plan_table)

X, W = jnp.zeros((6, 10)), jnp.zeros((10, 10))
PRODUCT = 2 * 6 * 10 * 10
HIGHEST = jax.lax.Precision.HIGHEST


def _exact(function, *shapes) -> float:
    return flops.count(function, *shapes).exact


def test_a_product_and_a_batch_of_products():
    assert _exact(lambda x, w: x @ w, X, W) == PRODUCT
    a, b = jnp.zeros((3, 5, 7)), jnp.zeros((3, 7, 4))
    assert _exact(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b) == 2 * 3 * 5 * 7 * 4


def _convolve(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def test_convolutions_count_every_tap():
    x = jnp.zeros((2, 8, 8, 6))
    assert _exact(_convolve, x, jnp.zeros((3, 3, 6, 4))) == 2 * (2 * 8 * 8) * (9 * 6) * 4
    assert _exact(lambda x, k: _convolve(x, k, groups=2), x, jnp.zeros((3, 3, 3, 4))) == 2 * (2 * 8 * 8) * (9 * 3) * 4


@pytest.mark.parametrize("stride", [1, 2])
def test_both_gradients_of_a_convolution_cost_what_it_costs(stride):
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 6, 4))
    loss = lambda x, k: _convolve(x, k, stride).sum()  # noqa: E731
    forward = _exact(loss, x, kernel)
    assert forward == 2 * (2 * (8 // stride) ** 2) * (9 * 6) * 4
    assert _exact(jax.value_and_grad(loss, argnums=(0, 1)), x, kernel) == 3 * forward


def test_loops_are_multiplied_out_and_the_dearest_branch_counts():
    many = lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, jnp.stack([w] * 5))[0]  # noqa: E731
    assert _exact(many, X, W) == 5 * PRODUCT
    assert _exact(jax.grad(lambda x, w: many(x, w).sum(), argnums=(0, 1)), X, W) == 3 * 5 * PRODUCT
    choose = lambda flag, x, w: jax.lax.cond(flag, lambda: x @ w @ w, lambda: x @ w)  # noqa: E731
    assert _exact(choose, True, X, W) == 2 * PRODUCT


def test_recomputation_is_executed_but_is_no_mathematics():
    layer = lambda x, w: jnp.sin(x @ w)  # noqa: E731
    loss = lambda f: jax.value_and_grad(lambda x, w: f(f(x, w), w).sum(), argnums=(0, 1))  # noqa: E731
    assert _exact(loss(layer), X, W) == 6 * PRODUCT
    assert _exact(loss(jax.checkpoint(layer)), X, W) == 8 * PRODUCT


def test_what_nothing_reads_is_not_executed():
    assert _exact(lambda x, w: (x @ w @ w, x @ w)[1], X, W) == PRODUCT


def test_tiles_round_shapes_up_and_full_float32_takes_six_passes():
    x, w = jnp.zeros((16, 72), jnp.bfloat16), jnp.zeros((72, 130), jnp.bfloat16)
    assert flops.count(jnp.matmul, x, w, tile=128).tiled == 2 * 128 * 128 * 136
    exact = lambda x, w: jnp.matmul(x, w, precision=HIGHEST)  # noqa: E731
    a, b = jnp.zeros((128, 128)), jnp.zeros((128, 128))
    assert flops.count(exact, a, b).tiled == 6 * flops.count(jnp.matmul, a, b).tiled == 6 * 2 * 128**3


PROGRAM = """
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%read_one_layer (p0: f32[5,4,128], p1: s32[]) -> f32[4,128] {
  %p0 = f32[5,4,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,4,128]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,4,128}
}

%condition (c: (s32[], f32[5,4,128])) -> pred[] {
  %c = (s32[], f32[5,4,128]{2,1,0}) parameter(0)
  %five = s32[] constant(5)
  %turn = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%turn, %five), direction=LT
}

%body (s: (s32[], f32[5,4,128])) -> (s32[], f32[5,4,128]) {
  %s = (s32[], f32[5,4,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %stack = f32[5,4,128]{2,1,0} get-tuple-element(%s), index=1
  %layer = f32[4,128]{1,0} fusion(%stack, %i), kind=kLoop, calls=%read_one_layer
  %whole = f32[4,128]{1,0} all-reduce(%layer), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %next = (s32[], f32[5,4,128]{2,1,0}) tuple(%i, %stack)
}

ENTRY %main (x: f32[4,128], stack: f32[5,4,128]) -> f32[32,128] {
  %x = f32[4,128]{1,0} parameter(0)
  %layers = f32[5,4,128]{2,1,0} parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], f32[5,4,128]{2,1,0}) tuple(%start, %layers)
  %loop = (s32[], f32[5,4,128]{2,1,0}) while(%init), condition=%condition, body=%body
  %alone = f32[4,128]{1,0} all-reduce(%x), replica_groups=mesh['a'=1,'b'=8], device_ids=([8]) {'a'}, to_apply=%add
  %begun = (f32[4,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%x), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)4}
  ROOT %gathered = f32[32,128]{1,0} all-gather-done(%begun)
}
"""
_ROW = 4 * 128 * 4  # bytes of f32[4,128]


def test_collectives_of_loops_meshes_and_groups():
    module = hlo.parse(PROGRAM)
    assert module.unknown_loops == 0
    found = collectives(module)
    reduced, gathered = found["all-reduce"], found["all-gather"]  # the group of one device sends nothing
    assert (reduced.count, reduced.bytes, reduced.sent) == (5, 5 * _ROW, 5 * _ROW * 2 * 3 / 4)
    assert (gathered.count, gathered.bytes, gathered.sent) == (1, 8 * _ROW, 8 * _ROW * 7 / 8)


def test_traffic_counts_slices_not_what_they_are_taken_from():
    # A turn: the fusion reads and writes a layer and reads a counter, the all-reduce reads and writes a layer, and the
    # condition reads two numbers and writes one byte. Outside: the lonely all-reduce, and the gather's both ends.
    assert traffic(hlo.parse(PROGRAM)) == 5 * (4 * _ROW + 4 + 9) + 2 * _ROW + 9 * _ROW


KERNEL = """
HloModule jit_g, is_scheduled=true

%write_a_layer (p0: f32[5,4,128], p1: f32[1,4,128], p2: s32[]) -> (f32[5,4,128], f32[1,4,128]) {
  %p0 = f32[5,4,128]{2,1,0} parameter(0)
  %p1 = f32[1,4,128]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %twice = f32[1,4,128]{2,1,0} add(%p1, %p1)
  %zero = s32[] constant(0)
  %written = f32[5,4,128]{2,1,0} dynamic-update-slice(%p0, %twice, %p2, %zero, %zero)
  ROOT %both = (f32[5,4,128]{2,1,0}, f32[1,4,128]{2,1,0}) tuple(%written, %twice)
}

ENTRY %main (stack: f32[5,4,128], x: f32[1,4,128], i: s32[]) -> (f32[5,4,128], f32[1,4,128]) {
  %stack = f32[5,4,128]{2,1,0} parameter(0)
  %x = f32[1,4,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %kernel = (f32[1,4,128]{2,1,0}, f32[9,9]{1,0:S(1)}) custom-call(%x, %x), custom_call_target="tpu_custom_call"
  %out = f32[1,4,128]{2,1,0} get-tuple-element(%kernel), index=0
  ROOT %kept = (f32[5,4,128]{2,1,0}, f32[1,4,128]{2,1,0}) fusion(%stack, %out, %i), kind=kLoop, calls=%write_a_layer
}
"""


def test_traffic_of_a_kernel_and_of_a_slice_that_is_kept_and_passed_on():
    # The kernel reads two layers and writes one, what it keeps on the chip apart. The fusion reads a layer and a
    # counter, reads and writes one layer of the stack, and writes another result.
    assert traffic(hlo.parse(KERNEL)) == 3 * _ROW + _ROW + 4 + 2 * _ROW + _ROW


def test_sizes_with_tiles_and_memory_spaces():
    first, second = hlo.arrays("(bf16[8,16,72]{1,2,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[3]{0:T(256)})")
    assert (first.bytes, first.on_chip) == (8 * 72 * 128 * 2, True)  # 16 is the fastest axis: 128; 72 divides by 8
    assert (second.bytes, second.on_chip) == (256 * 4, False)
    assert [a.bytes for a in hlo.arrays("(pred[10], s4[6]{0}, f8e4m3fn[4], token[])")] == [10, 3, 4, 0]


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing")


def test_a_real_program_sends_what_its_shardings_say():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    put = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))  # noqa: E731

    def loss(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=3)[0].sum()

    arguments = put((16, 16), PartitionSpec()), put((64, 16), PartitionSpec("data"))
    text = jax.jit(jax.grad(loss), out_shardings=NamedSharding(mesh, PartitionSpec())).lower(*arguments)
    module = hlo.parse(text.compile().as_text())
    found = collectives(module)
    assert set(found) == {"all-reduce"} and module.unknown_loops == 0
    assert found["all-reduce"].bytes % (16 * 16 * 4) == 0  # once, or in every turn, as the compiler likes
    assert found["all-reduce"].sent == found["all-reduce"].bytes * 2 * 7 / 8


@pytest.mark.parametrize("update", ["per_step", "per_depth"])
def test_what_a_codebook_update_sends_does_not_grow_with_the_batch(update):
    mesh = jax.make_mesh((4, 2, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    config = QuantizerConfig(codes=64, width=8, depth=3, codebook_update=update)
    codebook = jax.eval_shape(lambda: init_codebook(config, jax.random.key(0)))

    def sent(rows):
        z = jax.ShapeDtypeStruct((rows, 4, 8), jnp.float32, sharding=NamedSharding(mesh, BATCH))
        whole = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), codebook)
        step = jax.jit(lambda c, z: quantize_and_update(c, z, config, jax.random.key(1))[1], out_shardings=whole)
        with jax.set_mesh(mesh):
            text = step.lower(codebook, z).compile().as_text()
        return {kind: one.sent for kind, one in collectives(hlo.parse(text)).items()}

    assert sent(64) == sent(512) and set(sent(64)) == {"all-reduce"}


def _slice(shape, mesh_shape):
    """A mesh of stand-ins for a slice's devices, in the order of their coordinates."""
    devices = np.array([SimpleNamespace(coords=place) for place in np.ndindex(*shape)], dtype=object)
    names = dict(zip(AXES, mesh_shape, strict=True))
    return SimpleNamespace(devices=devices.reshape(mesh_shape), shape=names)


def test_links_of_groups():
    v5e, v5p, h100 = (next(c for c in chips.CHIPS if c.name == name) for name in ("v5e", "v5p", "H100"))
    assert chips.group_links(v5e, _slice((2, 4, 1), (8, 1, 1))) == {8: 2}  # two open lines
    assert chips.group_links(v5e, _slice((16, 16, 1), (256, 1, 1))) == {256: 4}  # two rings
    assert chips.group_links(v5e, _slice((16, 16, 1), (32, 8, 1))) == {8: 1, 32: 3, 256: 4}  # half rows
    assert chips.group_links(v5p, _slice((4, 4, 4), (4, 16, 1))) == {4: 2, 16: 4, 64: 6}
    assert chips.group_links(h100, _slice((8, 1, 1), (8, 1, 1))) == {8: 1}


def test_sending_takes_the_links_of_its_group():
    chip = dataclasses.replace(chips.CHIPS[0], link_speed=10.0)
    found = [Collective(1, 0, 60.0, {8: 40.0, 0: 20.0}), Collective(1, 0, 100.0, {256: 100.0})]
    assert network_seconds(chip, found, {8: 2.0, 256: 4.0}) == 2 + 2 + 2.5


def test_roofline_takes_the_longest_or_the_sum():
    chip = chips.Chip("test", "test", 100.0, 1.0, 10.0, 5.0, 2, 128, "nowhere")
    bound = roofline(chip, 4, images=8, model_flops=400.0, tiled_flops=800.0, traffic=10.0, network=3.0)
    assert (bound.compute, bound.memory, bound.network, bound.bound) == (2.0, 1.0, 3.0, "network")
    best, worst = bound.rates().values()
    assert (best["seconds"], best["images_per_second"], best["model_flops_utilisation"]) == (3.0, 8 / 3, 1 / 3)
    assert (worst["seconds"], worst["images_per_second_per_chip"]) == (6.0, 1 / 3)


def _plan(remat="full", rows=16, fsdp=1, state=2, temporaries=8, fits=True, program=PROGRAM) -> Plan:
    """Of 8 chips of 16 GiB; sizes in GiB."""
    config = tiny_config()
    siglip = dataclasses.replace(config.model.siglip, remat=remat)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, siglip=siglip),
        train=dataclasses.replace(config.train, batch_size=8 * rows),
    )
    memory = {"arguments": state, "outputs": state, "aliased": state, "temporaries": temporaries, "code": 0}
    compiled = step.Compiled(program, 1.0, {name: size << 30 for name, size in memory.items()})
    chip, needed = chips.find_chip("TPU v5 lite"), None if fits else (state + temporaries) << 30
    return Plan(
        config, 8, chip.kind, chip, {"data": 8 // fsdp, "fsdp": fsdp, "tensor": 1}, {"vision": 10}, state << 30,
        Flops(1e15, 1e15), Flops(1.3e15, 1.5e15), compiled if fits else None, needed,
        16 << 30, hlo.parse(program) if fits else None, {8: 2.0},
    )  # fmt: skip


def test_advice_when_it_does_not_fit():
    lines = advice(_plan("none", state=12, temporaries=20, fits=False))
    assert "mesh.fsdp=8" in lines[0] and "remat=dots" in lines[1] and "accumulate=8" in lines[2]
    assert "2 instead of 16" in lines[3] and "batch_size=16" in lines[3]
    (last,) = advice(_plan("full", rows=1, fsdp=8, state=2, temporaries=20, fits=False))
    assert "larger chips" in last


def test_advice_when_it_fits():
    assert "remat=dots" in advice(_plan("full", temporaries=2))[0]
    assert advice(_plan("none", temporaries=2)) == []
    assert advice(_plan("full", temporaries=12)) == []


def test_advice_where_attention_takes_the_memorys_time():
    def advised(image_size, attention):
        plan = _plan("full", temporaries=12, program=PROGRAM.replace("all-reduce", "negate"))
        siglip = dataclasses.replace(plan.config.model.siglip, image_size=image_size, attention=attention)
        config = dataclasses.replace(plan.config, model=dataclasses.replace(plan.config.model, siglip=siglip))
        plan = dataclasses.replace(plan, config=config, executed=Flops(0.0, 0.0), links={8: 1e6})
        assert plan.roofline.bound == "memory"
        return any("attention=fused" in line for line in advice(plan))

    assert advised(8 * 27, "plain") and not advised(8 * 27, "fused") and not advised(8 * 16, "plain")


def test_rows_that_should_fit():
    assert fitting_rows(_plan(rows=16, state=2, temporaries=3)) == 64
    assert fitting_rows(_plan(rows=16, state=2, temporaries=20, fits=False)) == 8
    unknown = dataclasses.replace(_plan(rows=16, fits=False), needed=None)
    assert fitting_rows(unknown) == 8


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (19.50G) exceeds "
        "available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 19.50G of "
        "15.75G hbm. Exceeded hbm capacity by 3.75G.",
    ],
)
def test_figures_of_the_compilers_refusal(message):
    error = step.DoesNotFit(message)
    assert (error.needed, error.available) == (int(19.5 * 2**30), int(15.75 * 2**30))
    assert step.DoesNotFit("RESOURCE_EXHAUSTED: no more").needed is None


def test_the_sweep_goes_to_the_largest_batch_that_fits_and_ranks_what_it_finds():
    """A stand-in for the compiler: 1 GiB for an image without remat, half of it with."""

    def plan(config):
        fsdp, remat = config.mesh.fsdp, config.model.siglip.remat
        rows = config.train.batch_size // 8
        need, state = rows * (1 if remat == "none" else 0.5), 12 // fsdp
        return _plan(remat, rows, fsdp, state, int(need) or 1, fits=state + need <= 16)

    told = []
    plans = sweep(tiny_config(), SimpleNamespace(devices=[None] * 8, plan=plan), told.append)
    assert len(told) == len(plans)
    largest = {(p.mesh["fsdp"], p.config.model.siglip.remat): 0 for p in plans}
    for p in plans:
        key = p.mesh["fsdp"], p.config.model.siglip.remat
        largest[key] = max(largest[key], p.rows if p.fits else 0)
    assert largest[1, "none"] == 4 and largest[1, "full"] == 8 and largest[8, "none"] == 8 and largest[8, "full"] == 16
    assert [speed(p) for p in plans] == sorted((speed(p) for p in plans), reverse=True)
    assert plans[0].fits


def test_the_sweep_leaves_meshes_out_that_do_not_divide():
    config = dataclasses.replace(tiny_config(), mesh=MeshConfig(tensor=2))
    assert {c.mesh.fsdp for c in candidates(config, 8)} == {1}
    assert {c.mesh.fsdp for c in candidates(tiny_config(), 4)} == {1, 4}


def test_shapes_of_the_frozen_networks():
    config = tiny_config()
    _, state, batch = step.abstract_step(config)
    assert set(state.frozen) == {"siglip"} and set(state.frozen["siglip"]) >= {"vision", "text"}
    lpips = dataclasses.replace(config.loss, perceptual_network="lpips", lpips_path="somewhere")
    assert set(step.make_task(dataclasses.replace(config, loss=lpips)).frozen.shapes()) == {"siglip", "lpips"}
    assert batch["image"].shape == (16, 16, 16, 3) and batch["image"].dtype == jnp.uint8


@pytest.fixture(scope="module")
def local() -> Plan:
    """The teacher's step, split over fsdp, on this machine's eight devices."""
    config = dataclasses.replace(teacher_config(tiny_config()), mesh=MeshConfig(fsdp=2))
    return Planner(topology.find_devices("local"), low_effort=False).plan(config)


def test_a_plan_for_this_machine(local):
    assert local.fits and local.rows == 2 and local.mesh == {"data": 4, "fsdp": 2, "tensor": 1}
    assert local.state_bytes <= local.compiled.memory["arguments"] <= local.state_bytes + 2 * 16 * 16 * 3 + 1024
    assert local.compiled.memory["aliased"] == local.state_bytes  # the state is donated
    assert local.collectives["all-reduce"].sent > 0 and local.traffic > local.state_bytes
    assert local.executed == local.model and local.roofline is None
    figures = json.loads(json.dumps(local.to_json()))
    assert figures["memory_per_device"]["total"] == local.compiled.total and "roofline" not in figures
    text = report(local)
    assert "no public figures" in text and "all-reduce" in text and "remat none" in line(local)


def test_the_report_of_a_chip_with_figures_and_of_one_that_is_too_small():
    text = report(_plan())
    assert "bound by compute" in text and "15.75" not in text and chips.find_chip("TPU v5 lite").source in text
    text = report(_plan("none", fits=False, temporaries=20))
    assert "does NOT fit" in text and "22.00 GiB" in text and "advice" in text


def test_the_table_of_slices_pairs_what_is_alike():
    def figures(devices, fits=True, **more):
        plan = dataclasses.replace(_plan(fits=fits), devices=devices, **more)
        versions = {"jax": "1", "libtpu": "2"}
        return json.loads(json.dumps(plan.to_json() | {"topology": "v5e:2x4", "effort": "low", "versions": versions}))

    alike = [figures(8), figures(256, executed=Flops(32 * 1.3e15, 32 * 1.5e15)), figures(64, fits=False)]
    ((_, chip, chips_, one_by_one, overlapped),) = plan_table.scaling(alike)
    assert (chip, chips_) == ("v5e", "8 → 256") and overlapped == one_by_one == f"{8 / 256:.1%}"  # of the same batch
    page = plan_table.page("Slices", alike)
    assert "does not fit: 10.0 of 16.0" in page and page.count("python -m dualtoken_jax.plan --config") == 3


@pytest.mark.parametrize("name", ["v5e", "pod", "v5e:4", "v5e:axb"])
def test_a_topology_that_is_none(name):
    with pytest.raises(topology.TopologyError, match="v5e:16x16"):
        topology.find_devices(name)


def test_without_libtpu_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(topology.TopologyError, match=r"pip install 'libtpu"):
        topology.find_devices("v5e:2x2")


def test_what_does_not_divide():
    planner, config = Planner(topology.find_devices("local"), low_effort=False), tiny_config()
    with pytest.raises(ValueError, match="do not make up the 8 devices"):
        planner.plan(dataclasses.replace(config, mesh=MeshConfig(fsdp=3)))
    with pytest.raises(ValueError, match="not divisible"):
        planner.plan(dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=12)))


def test_the_command_writes_its_figures_and_names_its_errors(tmp_path):
    file = tmp_path / "plan.json"
    small = [f"--config.model.siglip.{name}" for name in ("image_size=16", "patch_size=8", "vision.depth=1")]
    small += ["--config.data.scenes.resolution=16", "--config.train.batch_size=8", f"--json={file}"]
    done = python("-m", "dualtoken_jax.plan", "--config=configs/siglip.py", *small, devices=1)
    assert done.returncode == 0 and "memory of a device" in done.stdout, done.stderr
    figures = json.loads(file.read_text())
    assert figures["topology"] == "local" and figures["memory_per_device"]["fits"]
    done = python("-m", "dualtoken_jax.plan", "--config=configs/siglip.py", "--topology=pod")
    assert done.returncode == 1 and done.stderr.startswith("error: --topology='pod'")


@pytest.mark.slow
def test_the_command_for_a_tpu_that_is_not_here(tmp_path):
    pytest.importorskip("libtpu")
    arguments = ["--config=configs/siglip.py", "--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}"]
    done = python("-m", "dualtoken_jax.plan", *arguments)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["devices"] == 4 and figures["roofline"]["overlapped"]["images_per_second"] > 0
    assert "GiB" in done.stdout and "roofline" in done.stdout
