"""The programs of a sweep, compiled ahead of time on the shapes that the engine gives them.

They are the functions that a sweep calls, traced with shapes in place of arrays.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from avjax.engine.clean_pass import SharedPrompt, clean_pass, shared_keys
from avjax.engine.decoding import decode
from avjax.engine.reference import OwnPrompt, logits_at
from avjax.engine.replay import replay
from avjax.engine.scoring import block_size, read_block
from avjax.engine.session import Session
from avjax.metrics import Caption
from avjax.model import Model
from avjax.models.buckets import bucket, slot_bucket
from avjax.models.encoding import audio_chunks, audio_program, vision_calls, vision_program
from avjax.models.sites import Site
from avjax.prompts.prompt import Inputs, Prompt
from avjax.sweeping.prepare import Pass, Sweep
from avjax.tpu.counting import work
from avjax.tpu.synthetic import SyntheticPrompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One executable, per chip and call.

    Attributes:
      name: what it computes, and on which shape.
      calls: for one prompt.
      argument_bytes: of what it is given beside parameters.
      resident_bytes: of what else a chip holds while it runs, such as what the prompt's other programs read.
      output_bytes, temporary_bytes: of its results, and of what it needs meanwhile; code counts as temporary.
      flops, bytes: as XLA counts them in the compiled program, loops as often as they run.
    """

    name: str
    calls: int
    argument_bytes: int
    resident_bytes: int
    output_bytes: int
    temporary_bytes: int
    flops: float
    bytes: float

    @property
    def working_bytes(self) -> int:
        """All but parameters."""
        return self.argument_bytes + self.resident_bytes + self.output_bytes + self.temporary_bytes


class TooLarge(ValueError):
    """The compiler found no room for a program on a chip."""


def programs(planned: Sequence[Sweep], layout: SyntheticPrompt, *, quick: bool = False) -> list[Program]:
    """The programs of sweeps over one prompt, equal ones once.

    Args:
      planned: one after the other, such as the blocks of a run.
      quick: let the compiler try less hard, which takes a fraction of the time.

    Raises:
      TooLarge: the compiler finds no room for one on a chip.
    """
    model = planned[0].model
    bench = Bench(model.mesh, {"exec_time_optimization_effort": -1.0} if quick else {})
    _encoders(bench, model, layout)
    for sweep in planned:
        source_bytes = _sources(bench, sweep)
        for session, one in zip(sweep.sessions.values(), sweep.parts, strict=True):
            _session(bench, session, one, source_bytes)
    return list(bench.found.values())


class Bench:
    """Compiles programs and keeps what they cost."""

    def __init__(self, mesh: Mesh | None, compiler_options: dict[str, Any]):
        self.compiler_options = compiler_options
        self.everywhere = None if mesh is None else NamedSharding(mesh, P())
        self.found: dict[str, Program] = {}
        self.results: dict[str, Any] = {}

    def add(
        self,
        name: str,
        function: Any,
        *arguments: Any,
        calls: int,
        trips: int = 1,
        parameters: int = 1,
        resident: int = 0,
        **static: Any,
    ) -> Any:
        """The shapes of a program's results, on their places.

        Args:
          name: the same for equal programs.
          calls: how often it runs; those of equal programs add up.
          trips: how often loops of unknown length run in it.
          parameters: how many arguments, the first ones, are the model's.
          resident: bytes that a chip holds meanwhile, beside parameters, arguments and results.
        """
        if name in self.found:
            had = self.found[name]
            most = max(resident, had.resident_bytes)
            self.found[name] = dataclasses.replace(had, calls=had.calls + calls, resident_bytes=most)
            return self.results[name]
        arguments = jax.tree.map(self._placed, arguments)
        traced = function.trace(*arguments, **static)
        try:
            program = traced.lower().compile(self.compiler_options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooLarge(f"{name}: it does not fit in memory when compiled ({str(error).splitlines()[0]})") from error
        memory, cost = program.memory_analysis(), program.cost_analysis()
        once, repeated = work(traced.jaxpr, None), work(traced.jaxpr, trips)
        flops = cost.get("flops", 0.0)  # a program without operations has none
        share = flops / once.flops if once.flops else 0.0  # of all chips' work
        self.found[name] = Program(
            name=name,
            calls=calls,
            argument_bytes=held_bytes(arguments[parameters:]),
            resident_bytes=resident,
            output_bytes=memory.output_size_in_bytes,
            temporary_bytes=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
            flops=flops + share * (repeated.flops - once.flops),
            # What is moved outside of loops, such as copies into another layout, is moved once.
            bytes=cost.get("bytes accessed", 0.0) + share * (repeated.bytes - once.bytes),
        )
        self.results[name] = jax.tree.map(
            lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
            traced.out_info,
            program.output_shardings,
        )
        return self.results[name]

    def held(self, tree: Any) -> int:
        """Bytes of arrays on one chip."""
        return held_bytes(jax.tree.map(self._placed, tree))

    def _placed(self, leaf: Any) -> Any:
        """A shape on its place; whole on every chip where none is given."""
        place = getattr(leaf, "sharding", None)
        place = place if isinstance(place, NamedSharding) else self.everywhere
        return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=place)


def _encoders(bench: Bench, model: Model, layout: SyntheticPrompt) -> None:
    dtype = model.dtype
    windows, sizes = vision_calls(model.config.vision, layout.vision_grid(model.config))
    values = math.prod(model.config.vision.patch_shape)
    for size in sizes:
        patches = jax.ShapeDtypeStruct((size, *windows.patch_index.shape, values), dtype)
        name = f"vision encoder, {size} grid steps"
        bench.add(name, vision_program, model.network.vision, patches, windows.rows_columns, windows.valid, calls=1)
    if model.config.audio is not None and layout.hears:
        chunks, frames = audio_chunks(model.config.audio, layout.mel_frames)
        mel = jax.ShapeDtypeStruct((chunks, frames, model.config.audio.num_mel_bins), dtype)
        lengths = jax.ShapeDtypeStruct((chunks,), jnp.int32)
        bench.add(f"audio encoder, {layout.seconds} s", audio_program, model.network.audio, mel, lengths, calls=1)


def _sources(bench: Bench, sweep: Sweep) -> int:
    """The clean passes that find what is patched in; the bytes that a chip keeps of them."""
    model, source_bytes = sweep.model, 0
    wanted: dict[int, tuple[Prompt, set[Site]]] = {}
    for session in sweep.sessions.values():
        for prompt, site in session.folded.bank.needs:
            wanted.setdefault(id(prompt), (prompt, set()))[1].add(site)
    for prompt, sites in wanted.values():
        size = bucket(len(prompt))
        name = f"clean pass with {', '.join(sorted(sites))}, {size} positions"
        inputs = _inputs(model, size, num_groups=1)
        at, capture = jax.ShapeDtypeStruct((1,), jnp.int32), tuple(sorted(sites))
        bench.add(name, logits_at, model.network.decoder, inputs, None, at, calls=1, capture=capture)
        source_bytes += bench.found[name].output_bytes
    return source_bytes


def _session(bench: Bench, session: Session, one: Pass | Caption, sources: int) -> None:
    """The clean pass over a prompt, its replays, and what is read or decoded of them.

    Args:
      sources: bytes that a chip keeps of what is patched in.
    """
    model, cfg = session.model, session.model.config.decoder
    decoder, caption = model.network.decoder, isinstance(one, Caption)
    prompt = _shared(bench, session, sources)
    kinds = collections.Counter((batch.size, batch.num_rows) for batch in session.planned)
    for batch in session.planned:
        shape = (batch.size, batch.num_rows)
        if not (calls := kinds.pop(shape, 0)):
            continue
        starts = [b.start_layer for b in session.planned if (b.size, b.num_rows) == shape]
        variants = session.stacked(batch.padded())
        program = bench.add(
            f"replay, {batch.size} variants x {batch.num_rows} rows" + ", kept" * caption + _read(session),
            replay,
            decoder,
            prompt,
            variants,
            jax.ShapeDtypeStruct((), jnp.int32),
            session.query_weights(batch.num_rows),
            calls=calls,
            resident=sources,
            trips=max(0, cfg.num_layers - 1 - round(float(np.mean(starts)))),
            num_variants=batch.size,
            num_rows=batch.num_rows,
            keep_cache=caption,
            compat=session.compat,
        )
        if isinstance(one, Caption):
            _decoding(bench, session, one, batch.size, calls, (prompt, program, variants), sources)
    if isinstance(one, Pass):
        tokens = one.unembedded(model)
        used = cfg.vocab_size if tokens is None else len(tokens)
        size = block_size(len(session.lowered) + 1, session.num_reads, used, session.budget.memory_bytes)
        residual = jax.ShapeDtypeStruct((size, session.num_reads, cfg.embed_dim), model.dtype)
        continued = _integers(one.num_continued)
        blocks = -(-(len(session.lowered) + 1) // size)
        name = f"read-out, {size} variants x {used} tokens, {one.num_continued} continued"
        resident = sources + bench.held(prompt)
        bench.add(name, read_block, decoder, residual, continued, continued, tokens, calls=blocks, resident=resident)


def _read(session: Session) -> str:
    queries = len(session.reads.attention)
    reads = f", {session.num_reads} read" if session.num_reads > 1 else ""
    reads += "" if session.reads.branches is None else ", branched"
    return reads + (f", attention of {queries}" if queries else "")


def _integers(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _inputs(model: Model, size: int, num_groups: int) -> Inputs:
    embeddings: Any = jax.ShapeDtypeStruct((size, model.config.decoder.embed_dim), model.dtype)
    return Inputs(
        embeddings=embeddings,
        positions=_integers(3, size),
        groups=_integers(size),
        generated_group=_integers(),
        length=_integers(),
        num_groups=num_groups,
    )


def _shared(bench: Bench, session: Session, sources: int) -> SharedPrompt:
    """What all variants share, as shapes."""
    model, layout = session.model, session.layout
    inputs = _inputs(model, session.size, session.groups.num_groups)
    if session.reads.branches is not None:
        inputs = dataclasses.replace(inputs, branches=_integers(session.size))
    note = f"{session.size} positions{_read(session)}, {session.clean_rows} kept"
    clean = bench.add(
        f"clean pass, {note}",
        clean_pass,
        model.network.decoder,
        inputs,
        _integers(),
        calls=1,
        resident=sources,
        num_rows=session.clean_rows,
        num_reads=session.num_reads,
        want_mass=bool(session.reads.attention),
    )
    name = f"key layout, {len(layout.slots)} slots of {note}"
    arguments = (clean, layout.slots, layout.block_class)
    shared = bench.add(name, shared_keys, *arguments, calls=1, parameters=0, resident=sources)
    return SharedPrompt(
        inputs=inputs,
        clean=clean,
        shared=shared,
        group_class=_integers(*layout.group_class.shape),
        class_group=_integers(*layout.class_group.shape),
        first_read=_integers(),
    )


def _decoding(
    bench: Bench, session: Session, one: Caption, size: int, calls: int, made: tuple[Any, Any, Any], sources: int
) -> None:
    prompt, replayed, variants = made
    cfg = session.model.config.decoder
    last = jax.ShapeDtypeStruct((size, cfg.embed_dim), session.model.dtype)
    own: Any = OwnPrompt(keys=replayed.keys, values=replayed.values, last=last, largest=replayed.largest)  # pyright: ignore
    bench.add(
        f"decoding, {size} variants x {one.limit} tokens, {replayed.keys.shape[2]} own rows",
        decode,
        session.model.network.decoder,
        prompt,
        own,
        variants,
        jax.ShapeDtypeStruct((cfg.vocab_size,), jnp.bool_),
        _integers(),
        _integers(),
        _integers(1),
        jax.ShapeDtypeStruct((), jnp.float32),
        calls=calls,
        resident=sources,
        trips=one.limit - 1,
        num_slots=slot_bucket(one.limit),
        keep_logits=session.budget.kept_logits > 0,
        compat=session.compat,
    )


def held_bytes(tree: Any) -> int:
    """The bytes of arrays on one chip, in the layout that the compiler gives them."""
    if not jax.tree.leaves(tree):
        return 0
    program = jax.jit(lambda tree: 0, keep_unused=True).trace(tree).lower().compile()
    memory = program.memory_analysis()
    assert memory is not None  # a TPU's compiler always says it
    return memory.argument_size_in_bytes
