"""Plausible slips in Python: each is one sentence that says what to write, as a user without type checks sees it.

They run in a process of their own: the tests' type checks would refuse most of them with words of their own.
"""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import avjax
from avjax import metrics
from avjax.analysis import trace

model = avjax.load("tiny-av")
prompt = model.prompt("nothing to hear")
rule, metric = "answer->text", metrics.LogProb("rain")
found = {}
for slip in json.loads(sys.argv[1]):
    try:
        eval(slip)
    except Exception as error:
        found[slip] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""

SLIPS = {
    # metrics
    "avjax.sweep(model, prompt, rule, 'logit_diff')": "metrics: expected Metric objects, got the name 'logit_diff'; "
    "pass avjax.metrics.LogitDiff('a', 'b')",
    "avjax.sweep(model, prompt, rule, [metric, 'logprob'])": "name 'logprob'; pass avjax.metrics.LogProb('word')",
    "avjax.sweep(model, prompt, rule, ['LogitDif'])": "pass avjax.metrics.LogitDiff('a', 'b')",
    "avjax.sweep(model, prompt, rule, 'banana')": "pass avjax.metrics.LogProb('word') or another metric",
    "avjax.sweep(model, prompt, rule, [metrics.KL])": "got the class KL; call it: KL(...)",
    "avjax.sweep(model, prompt, rule, {'metric': 'top_k'})": "got a dict; in Python pass avjax.metrics.TopK()",
    "avjax.plan(model, prompt, rule, 'kl')": "pass avjax.metrics.KL()",
    "avjax.sweep(model, prompt, rule, 'kl', store='no-such-directory')": "pass avjax.metrics.KL()",
    # prompts
    "avjax.sweep(model, 'clip.mp4', rule, metric)": "got the path 'clip.mp4'; pass model.prompt('Describe this.', "
    "video='clip.mp4')",
    "avjax.sweep(model, Path('clip.wav'), rule, metric)": "audio='clip.wav'",
    "avjax.sweep(model, ['a.mp4', 'b.mp4'], rule, metric)": "got the path 'a.mp4' for 0; pass model.prompt(",
    "avjax.sweep(model, {'a': Path('a.png')}, rule, metric)": "pass model.prompt('Describe this.', image='a.png')",
    "avjax.sweep(model, None, rule, metric)": "prompts: expected prompts (model.prompt(...)), got NoneType",
    "avjax.run(model, 'clip.mp4')": "pass model.prompt('Describe this.', video='clip.mp4')",
    "avjax.run(model, Path('clip.mp4'), compat='published')": "got the path 'clip.mp4'",
    "avjax.generate(model, 'clip.mov')": "video='clip.mov'",
    "avjax.generate(model, 'Describe it')": "got the text 'Describe it'; pass model.prompt('Describe it')",
    "model.prompt('clip.mp4')": "expected the user's words, got the name of a file, 'clip.mp4'; pass model.prompt(",
    "model.prompt('hi', vidoe='x.mp4')": "did you mean 'video'?",
    "model.prompt('hi', max_pixel=3)": "did you mean 'max_pixels'?",
    # models
    "avjax.run('tiny-av', prompt)": "model: expected a loaded model, got 'tiny-av'; pass avjax.load('tiny-av')",
    "avjax.sweep('tiny-av', prompt, rule, metric)": "pass avjax.load('tiny-av')",
    "avjax.generate(Path('x/y'), prompt)": "pass avjax.load('x/y')",
    "avjax.load('tiny-va')": "did you mean 'tiny-av'?",
    "avjax.load('tiny_vl')": "did you mean 'tiny-vl'?",
    "avjax.load('tiny-av', dtype='bf16')": "did you mean 'bfloat16'?",
    "avjax.load(None)": "expected a directory, a hub id, or a built-in checkpoint",
    # grids
    "avjax.sweep(model, prompt, avjax.Knockout, metric)": "got the class Knockout; call it: Knockout(...)",
    "avjax.sweep(model, prompt, [avjax.Knockout], metric)": "got the class Knockout; call it: Knockout(...)",
    "avjax.sweep(model, prompt, avjax.each_layer, metric)": "the function each_layer; call it: avjax.each_layer(...)",
    "avjax.sweep(model, prompt, avjax.windows(4), metric)": "got the axis <layers>; pass it as a field of an edit",
    "avjax.sweep(model, prompt, {'edit': 'knockout'}, metric)": "got a dict; in Python an edit is an object",
    "avjax.sweep(model, prompt, 3, metric)": "grid: expected avjax.grid(...), an edit, a rule string or a list",
    "avjax.sweep(model, prompt, 'answr->text', metric)": "did you mean 'answer'?",
    "avjax.sweep(model, prompt, avjax.Knockout(query='last', key='text', layers=avjax.windows(40)), metric)":
    "expected a width within 1 to 8, the layers of this model, got 40",
    "avjax.windows(4, placement='center')": "did you mean 'centred'?",
    "avjax.windows('4')": "expected a width and stride of at least 1, got '4'",
    "avjax.axis(['audio'], 'key')": "expected a name and then its values, got ['audio'] for the name",
    "avjax.axis('key', 3)": "expected a list of values, got 3",
    "avjax.grid([avjax.Scale('text', 0.5)])": "got a list; pass the edits that apply together one after the other",
    # edits
    "avjax.Knockout(query='last', key='text', heads='0-3')": "did you mean '0:3'?",
    "avjax.Knockout(query='last', key='text', heads=0.5)": "heads: expected integers, got 0.5",
    "avjax.Knockout(query=None, key='text')": "expected query to be tokens, such as 'audio'",
    "avjax.run(model, prompt, avjax.Scale('text', 2, site='z', heads=[-1]))": "got -1; the last head is",
    "avjax.Scale('text', 0.5, site='resid_pots')": "did you mean 'resid_post'?",
    "avjax.Ablate('text', 'Mean')": "did you mean 'mean'?",
    # settings
    "avjax.sweep(model, prompt, rule, metric, executor='replya')": "did you mean 'replay'?",
    "avjax.sweep(model, prompt, rule, metric, compat='publishd')": "did you mean 'published'?",
    "avjax.sweep(model, prompt, rule, metric, store=3)": "store: expected a directory, or gs://..., got 3",
    "avjax.run(model, prompt, capture=3)": "capture: expected sites, such as ['resid_post'], got 3",
    "avjax.run(model, prompt, at='lst')": "did you mean 'last'?",
    "avjax.generate(model, prompt, max_new_tokens='5')": "expected at least 1, got '5'",
}  # fmt: skip


@pytest.fixture(scope="module")
def messages() -> dict[str, list[str]]:
    """The type and text of each slip's error."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([*SLIPS])], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_says_what_to_write(slip: str, messages: dict[str, list[str]]):
    assert slip in messages, "it was understood as something else"
    kind, text = messages[slip]
    assert kind in ("ValueError", "TypeError", "FileNotFoundError") and SLIPS[slip] in text, (kind, text)
    assert "\n" not in text
