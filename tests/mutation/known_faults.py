"""One-line faults that no test noticed once; each must be caught by the tests that reach it.

``python -m tests.mutation --known`` puts them in one at a time. A fault whose line is gone is
reported: find its place today, or take it out where such a fault is no longer possible.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutation.mutants import Mutant
from tests.support.repository import REPOSITORY


@dataclass(frozen=True)
class Fault:
    """`old` occurs once in the module; `new` takes its place."""

    what: str
    module: str
    old: str
    new: str

    def mutant(self) -> Mutant | None:
        """None where the line is not, or not once, in the module."""
        source = (REPOSITORY / self.module).read_text()
        if source.count(self.old) != 1:
            return None
        line = source[: source.index(self.old)].count("\n") + 1
        mutated = source.replace(self.old, self.new)
        return Mutant(self.module, line, 0, self.what, mutated, self.old, self.new)


SAVED_STATE = "ifsq_train/training/saved_state.py"
LOCAL = "data_pipelines/storage/local.py"
FSQ = "ifsq_train/models/quantizers/fsq.py"
EMA = "ifsq_train/training/ema.py"
GUARD = "ifsq_train/training/nonfinite.py"
NUMBERED = """\
            rows.append(replace(row, label=numbering.number(label)))
            raw.append(label)
        except BadLabel as error:
            bad.append(BadTarSample(name, row.key, -1, str(error)))
    facts = {key: value for key, value in made.metadata.items() if key not in ("raw", "from_text")}
"""
PODS = "launchers/on_kubernetes/pods.py"

FAULTS = [
    Fault("saved buffers not copied back", SAVED_STATE, "buffers[key].copy_(saved)", "pass"),
    Fault("averages not loaded", SAVED_STATE, "average.load(checkpoint)", "pass"),
    Fault("shape unchecked", SAVED_STATE, "if shape != piece.shape:", "if False:"),
    Fault(
        "min and max exchanged",
        "ifsq_train/checkpoint/retention.py",
        'best.mode == "min"',
        'best.mode == "max"',
    ),
    Fault(
        "NaN scores",
        "ifsq_train/checkpoint/retention.py",
        "value is not None and math.isfinite(value)",
        "value is not None",
    ),
    Fault(
        "a kept index with another numbering",
        "data_pipelines/images/packing/tar_index.py",
        NUMBERED,
        NUMBERED.replace(
            "label=numbering.number(label)",
            "label=row.label if row.label >= 0 else numbering.number(label)",
        ).replace(' if key not in ("raw", "from_text")', ""),
    ),
    Fault(
        "posterior noise without the epoch",
        "data_pipelines/tokens/reader.py",
        "_DOMAIN_POSTERIOR, epoch,",
        "_DOMAIN_POSTERIOR, 0,",
    ),
    Fault(
        "one draw for all groups",
        "ifsq_train/sampling/autoregressive.py",
        "draws[:, position, group]",
        "draws[:, position, 0]",
    ),
    Fault(
        "one draw for all groups, compiled",
        "ifsq_train/sampling/autoregressive.py",
        "decoder.step(x, draws[:, position],",
        "decoder.step(x, draws[:, position, :1].expand(-1, draws.shape[2]).contiguous(),",
    ),
    Fault(
        "group 0's digits for every group",
        "data_pipelines/tokens/latents.py",
        "tokens[..., group]",
        "tokens[..., 0]",
    ),
    Fault("NaN of one of two networks", GUARD, "bad = name", "bad = None"),
    Fault("counter never reset", GUARD, "            self._in_a_row = 0", "            pass"),
    Fault(
        "counter of norms on the device never reset",
        GUARD,
        "        self._in_a_row = 0\n        return False\n\n    def _act",
        "        return False\n\n    def _act",
    ),
    Fault(
        "norms on the device are never in a row",
        GUARD,
        "        if not self._kept:",
        "        if True:",
    ),
    Fault(
        "failed saves never forgotten",
        "ifsq_train/checkpoint/writer.py",
        "            self._failed_saves = 0\n            return",
        "            return",
    ),
    Fault(
        "fence unchecked before the marker",
        "ifsq_train/checkpoint/writer.py",
        "            self._fence.check()\n        for path",
        "            pass\n        for path",
    ),
    Fault(
        "unlabelled trained as class 0",
        "ifsq_train/tasks/generator.py",
        "dropped | unlabelled",
        "dropped",
    ),
    Fault(
        "group weights ignored on the quick path",
        "ifsq_train/tasks/autoregressive.py",
        "sum_of_group_means(output.group_losses, weights)",
        "sum_of_group_means(output.group_losses)",
    ),
    Fault(
        "no fsync of a checkpoint's file",
        LOCAL,
        "            os.fsync(file.fileno())\n        temporary.replace(path)",
        "        temporary.replace(path)",
    ),
    Fault("written in place", LOCAL, 'path.with_name(f".{path.name}.{os.getpid()}.tmp")', "path"),
    Fault("folder not synced", LOCAL, "    sync_folder(path.parent)", "    pass"),
    Fault(
        "marker before the table",
        "data_pipelines/manifest.py",
        "    storage.write(MANIFEST_TABLE, data)\n",
        "    storage.write(MANIFEST_JSON, json.dumps(facts).encode())\n"
        "    storage.write(MANIFEST_TABLE, data)\n",
    ),
    Fault(
        "marker before the token table",
        "data_pipelines/tokens/writer.py",
        "    storage.write(table_name(len(spec.grown_from)), data)\n",
        "    storage.write(TOKENS_JSON, json.dumps(facts).encode())\n"
        "    storage.write(table_name(len(spec.grown_from)), data)\n",
    ),
    Fault(
        "window missing from the digest",
        "data_pipelines/order/plan.py",
        '            "shuffle_window": self.shuffle_window,\n',
        "",
    ),
    Fault(
        "only the first rows of a manifold",
        "ifsq_train/evaluation/manifold.py",
        "    for rows in points.split(_ROWS_AT_ONCE):",
        "    for rows in points.split(_ROWS_AT_ONCE)[:1]:",
    ),
    Fault(
        "fence unchecked",
        "ifsq_train/checkpoint/writer.py",
        "            self._fence.check()\n        target",
        "            pass\n        target",
    ),
    Fault(
        "version unchecked",
        "ifsq_train/checkpoint/format.py",
        'if isinstance(marker, dict) and marker.get("format") != FORMAT_VERSION:',
        "if False:",
    ),
    Fault(
        "the profile's variables beat the user's",
        PODS,
        "{**profile.env, **request.env}",
        "{**request.env, **profile.env}",
    ),
    Fault(
        "object store a tenth", PODS, "parse_quantity(memory) / 4", "parse_quantity(memory) / 10"
    ),
    Fault(
        "last line lost",
        "launchers/on_kubernetes/logs.py",
        "if rest and keep_rest:",
        "if False:",
    ),
    Fault(
        "no zero initialisation",
        "ifsq_train/models/dit.py",
        "            nn.init.zeros_(layer.weight)\n",
        "",
    ),
    Fault(
        "tokenizer in train mode in discriminator steps",
        "ifsq_train/tasks/tokenizer_gan.py",
        "self._autoencoder.eval()",
        "self._autoencoder.train()",
    ),
    Fault(
        "moments move in evaluation",
        FSQ,
        "if self._track_statistics and self.training:",
        "if self._track_statistics:",
    ),
    Fault("no clamp on the plain path", FSQ, "rounded = rounded.clamp(-half, half)", "pass"),
    Fault("buffers never averaged", EMA, "        if self._buffers:", "        if False:"),
    Fault(
        "YCCK taken for common",
        "data_pipelines/images/decoders/jpeg_header.py",
        "len(self.sampling) == 3\n",
        "len(self.sampling) in (3, 4)\n",
    ),
]
