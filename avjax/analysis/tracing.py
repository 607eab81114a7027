"""Causal tracing: clean activations pasted into a corrupt run, by site, layer and token group.

Source: Meng et al. 2022 (causal tracing); Cross-modal Information Hubs (arXiv 2605.10815): indirect effects on the
clean and on the corrupt answer, and samples that one modality decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.analysis.by_sample import Prompts, sweep_samples
from avjax.analysis.rounding import MIN_GAP, noise_floor, smallest_gap
from avjax.edits.edits import Patch, Scale
from avjax.edits.grids import Placement, axis, grid, windows
from avjax.metrics import Answer, LogitDiff, Metric, Prob
from avjax.model import Model
from avjax.prompts.prompt import Prompt, named_prompts, per_sample
from avjax.prompts.selectors import BySample, Selector, select
from avjax.statistics import ie_clean, ie_corrupt, recovery

Answers = Answer | Mapping[Any, Answer]
CLEAN, CORRUPT, DIFFERENCE = "prob_clean_answer", "prob_corrupt_answer", "logit_diff"
MIN_ANSWER_PROBABILITY = 0.01  # least probability of an answer whose loss means anything; ours
DECIDES = 0.5  # of the answer's probability must be lost with a modality that decides; ours


def trace(
    model: Model,
    clean: Prompts,
    corrupt: Prompts,
    clean_answers: Answers,
    corrupt_answers: Answers,
    *,
    groups: Sequence[Selector | BySample] = ("audio", "video", "text", "last"),
    sites: Sequence[str] = ("resid_post",),
    width: int = 1,
    stride: int = 1,
    placement: Placement = "centred",
    min_gap: float | None = None,
    **options: Any,
) -> xr.Dataset:
    """Restores each token group, in each window of layers, to what it was in the clean run.

    Args:
      clean, corrupt: prompts of the same samples; a corrupt one is noised, muted, swapped or shifted
        (`avjax.NoiseAudio`, `MuteAudio`, `SwapAudio`, `ShiftAudio` ...).
      clean_answers, corrupt_answers: what each run would say next, for all samples or by sample; tokens that are scored
        together as in `avjax.metrics.LogitDiff`.
      groups: token groups, each sample's own ones too, such as those of `select_sinks` and `select_random`; the n-th
        token of a group is restored from the n-th one of the clean prompt.
      sites: residual sites, `attn_in`, `attn_out`, `mlp_in`, `mlp_out`, `z` or `value`.
      width: layers of a window; 1 restores one layer at a time.
      stride, placement: see `avjax.windows`.
      min_gap: nats by which the logit differences of a sample's two runs must differ for it to have recoveries. None
        measures what rounding does to each sample's runs, in the model's dtype, and takes 8 times that: noise alone
        then moves a recovery by at most 0.25.
      options: of `avjax.sweep`.

    Returns:
      Over (group, site, layers, sample): `ie_clean`, `ie_corrupt` (probability) and `recovery` (of the logit difference
      clean minus corrupt answer: 0 is the corrupt run, 1 the clean run, missing where the two differ by less than
      `min_gap` over (sample)), the metrics that they come from, and each of these for the runs themselves as
      `NAME_of_corrupt` and `NAME_of_clean` over (sample). The attributes `min_gap` and `recovery_missing` say what is
      left out and in how many samples.

    Raises:
      ValueError: samples differ, a group has other tokens in one prompt of a pair, or `min_gap` is not above 0.
    """
    groups = [groups] if isinstance(groups, str) else groups
    sites = [sites] if isinstance(sites, str) else sites
    if min_gap is not None and not (is_number(min_gap) and 0 < min_gap < np.inf):
        raise ValueError(f"min_gap: expected a number of nats above 0, or None to measure it, got {min_gap!r}")
    sources, targets = named_prompts(clean), named_prompts(corrupt)
    check_pairs(sources, targets, groups)
    metrics = _metrics(targets, clean_answers, corrupt_answers)
    edit = Patch(
        axis("group", groups),
        source=sources,
        site=axis("site", sites),
        layers=windows(width, stride=stride, placement=placement),
    )
    patched = sweep_samples(model, targets, grid(edit), metrics, **options)
    unpatched = sweep_samples(model, sources, [[]], metrics, **options)
    dataset = patched.rename({f"{name}_clean": f"{name}_of_corrupt" for name in (CLEAN, CORRUPT, DIFFERENCE)})
    dataset = dataset.assign({f"{name}_of_clean": unpatched[f"{name}_clean"] for name in (CLEAN, CORRUPT, DIFFERENCE)})
    runs = dataset[f"{DIFFERENCE}_of_corrupt"], dataset[f"{DIFFERENCE}_of_clean"]
    least, min_gap_source = _least_gaps(model, sources, targets, min_gap, options)
    if min_gap is None and f"{DIFFERENCE}_floor" in dataset:  # words of several tokens have more noise than one logit
        least = least.copy(data=np.fmax(least.values, smallest_gap(dataset[f"{DIFFERENCE}_floor"].item())))
    dataset = dataset.assign(
        ie_clean=ie_clean(dataset[CLEAN], _like(dataset[f"{CLEAN}_of_corrupt"], dataset[CLEAN])),
        ie_corrupt=ie_corrupt(_like(dataset[f"{CORRUPT}_of_corrupt"], dataset[CORRUPT]), dataset[CORRUPT]),
        recovery=_recovered(dataset[DIFFERENCE], *runs, least),
        min_gap=least,
    )
    missing = int(dataset["recovery"].isnull().all([d for d in dataset["recovery"].dims if d != "sample"]).sum())
    return dataset.assign_attrs(min_gap=min_gap_source, recovery_missing=f"{missing} of {len(sources)} samples")


def _least_gaps(
    model: Model,
    clean: Mapping[Any, Prompt],
    corrupt: Mapping[Any, Prompt],
    given: float | None,
    options: Mapping[str, Any],
) -> tuple[xr.DataArray, str]:
    """The smallest gap of each sample's runs that has recoveries, and where it comes from in words."""
    if given is None:
        settings = {name: options[name] for name in ("memory_bytes", "compat") if name in options}
        floors = [max(noise_floor(model, p, **settings) for p in (clean[name], corrupt[name])) for name in clean]
        values, source = smallest_gap(np.array(floors)), MIN_GAP
    else:
        values, source = np.full(len(clean), float(given)), f"{given:g} nats, as given"
    attrs = {"units": "nats", "long_name": "smallest gap of the two runs that has recoveries", "averages": 0}
    return xr.DataArray(values, {"sample": list(clean)}, ["sample"], attrs=attrs), source


def _recovered(patched: xr.DataArray, corrupt: xr.DataArray, clean: xr.DataArray, least: xr.DataArray) -> xr.DataArray:
    """`recovery`, missing where the runs differ by less than a sample's smallest gap."""
    share = recovery(patched, _like(corrupt, patched), _like(clean, patched), min_gap=float(np.finfo(np.float32).tiny))
    return share.where(abs(clean - corrupt).drop_attrs() >= least)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def check_pairs(
    clean: Mapping[Any, Prompt], corrupt: Mapping[Any, Prompt], groups: Sequence[Selector | BySample]
) -> None:
    """Refuses pairs whose tokens do not stand for each other.

    Raises:
      ValueError: the sample and the group are named.
    """
    if list(clean) != list(corrupt):
        raise ValueError(
            f"trace: expected clean and corrupt prompts of the same samples, got {[*clean]} and {[*corrupt]}"
        )
    for name, source in clean.items():
        target = corrupt[name]
        if len(source) != len(target) or not np.array_equal(source.kinds, target.kinds):
            raise ValueError(
                f"trace: the prompts of sample {name!r} cannot be aligned: {source.counts()} clean and "
                f"{target.counts()} corrupt tokens; use a corruption that keeps the clip's length and tokens, "
                "such as avjax.MuteAudio"
            )
        for group in groups:
            here = group.at(name) if isinstance(group, BySample) else group
            counts = [int(select(prompt, here)[:-1].sum()) for prompt in (source, target)]
            if counts[0] != counts[1] or not counts[0]:
                raise ValueError(
                    f"trace: expected the same number of {group} tokens, at least 1, in both prompts of sample "
                    f"{name!r}, got {counts[0]} "
                    f"clean and {counts[1]} corrupt"
                )


def deciding_modality(
    model: Model,
    prompts: Prompts,
    answers: Answers,
    *,
    modalities: Sequence[Selector] = ("audio", "video"),
    decides: float = DECIDES,
    **options: Any,
) -> xr.Dataset:
    """Which samples one modality alone decides: without it the answer is lost, without any other it stays.

    A modality is removed by zeroing its embeddings.

    Args:
      answers: what the clean run says next, for all samples or by sample.
      decides: the share of the answer's probability that is lost with a modality that decides; 0.5 is ours.

    Returns:
      `lost`, the share of the answer's probability that is lost, over (modality, sample); `decided`, bool, over
      (sample), and `by`, the modality that decides, or "".

    Raises:
      ValueError: an answer is not what the clean run might say.

    Source: Cross-modal Information Hubs (arXiv 2605.10815) keeps such samples; its threshold is unknown.
    """
    if not 0 < decides < 1:
        raise ValueError(f"decides: expected a share between 0 and 1, got {decides}")
    named = named_prompts(prompts)
    answers = per_sample(named, answers, "answers")
    metrics = {name: Prob(answers[name]) for name in named}
    edit = Scale(axis("modality", modalities), factor=0.0, site="embed")
    dataset = sweep_samples(model, named, grid(edit), metrics, **options)
    prob_clean = dataset["prob_clean"]
    if unsaid := [
        str(s)
        for s, p in zip(prob_clean["sample"].values, prob_clean.values, strict=True)
        if not p >= MIN_ANSWER_PROBABILITY
    ]:
        raise ValueError(
            "answers: expected answers that the clean run may give next, got a probability below "
            f"{MIN_ANSWER_PROBABILITY:g} for sample {', '.join(unsaid[:5])}; start "
            "the answer with prompt.continued, or leave the sample out"
        )
    lost = (1 - dataset["prob"] / prob_clean).transpose("modality", "sample")
    lost.attrs.update(units="1", long_name="share of the answer's probability that is lost")
    gone = lost.values >= decides
    decided = gone.sum(0) == 1
    labels = [str(m) for m in dataset["modality"].values]
    by = [labels[int(np.argmax(column))] if one else "" for column, one in zip(gone.T, decided, strict=True)]
    attributes = dataset.attrs | {"decides": decides}
    variables = {"lost": lost, "decided": ("sample", decided), "by": ("sample", np.array(by, object))}
    return xr.Dataset(variables, attrs=attributes)


def _metrics(prompts: Mapping[Any, Prompt], clean: Answers, corrupt: Answers) -> dict[Any, list[Metric]]:
    cleans, corrupts = (
        per_sample(prompts, clean, "clean_answers"),
        per_sample(prompts, corrupt, "corrupt_answers"),
    )
    return {
        name: [
            Prob(cleans[name], name=CLEAN),
            Prob(corrupts[name], name=CORRUPT),
            LogitDiff(cleans[name], corrupts[name], name=DIFFERENCE),
        ]
        for name in prompts
    }


def _like(run: xr.DataArray, patched: xr.DataArray) -> xr.DataArray:
    """A run's value beside every cell."""
    return run.broadcast_like(patched)
