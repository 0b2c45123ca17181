"""One-line faults that no test noticed once; each must be caught by the tests that reach it.

``python -m tests.mutation --known`` puts them in one at a time and asks the test of `CAUGHT_BY`. A
fault whose line is gone is reported: find its place today, or take it out where such a fault is no
longer possible.
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

_TESTS = {
    "ifsq_train/checkpoint/test_order_of_saves.py": {
        "saved buffers not copied back": "test_buffers_are_taken_over",
        "shape unchecked": "test_a_transposed_weight_is_refused",
        "min and max exchanged": "test_the_recipe_s_best_is_kept",
        "NaN scores": "test_a_score_that_is_no_number_is_no_score",
        "fence unchecked before the marker": (
            "test_a_start_that_takes_over_while_the_older_writes_keeps_it_from_publishing"
        ),
        "fence unchecked": "test_an_older_start_changes_no_file_of_the_newer",
        "version unchecked": "test_another_format_is_refused",
    },
    "ifsq_train/training/test_exact_resume.py": {
        "averages not loaded": "test_torch",
        "buffers never averaged": "test_torch",
    },
    "data_pipelines/images/packing/test_image_index.py": {
        "a kept index with another numbering": (
            "test_a_kept_index_is_not_taken_with_another_numbering"
        ),
    },
    "data_pipelines/tokens/test_posterior_noise.py": {
        "posterior noise without the epoch": "test_noise_changes_with_seed_epoch_and_sample",
        "group 0's digits for every group": "test_every_group_has_its_own_digits",
    },
    "ifsq_train/test_random_draws.py": {
        "one draw for all groups": "test_groups_of_a_position_are_drawn_independently",
    },
    "ifsq_train/sampling/test_static_decoder.py": {
        "one draw for all groups, compiled": "test_tokens_are_those_of_eager_sampling",
    },
    "ifsq_train/training/test_counters.py": {
        "NaN of one of two networks": "test_one_spoiled_network_of_two_is_enough",
        "counter never reset": "test_a_good_step_between_ends_the_row",
        "counter of norms on the device never reset": (
            "test_norms_on_the_device_are_counted_in_a_row"
        ),
        "norms on the device are never in a row": "test_norms_on_the_device_are_counted_in_a_row",
        "failed saves never forgotten": "test_a_save_between_ends_the_row_of_failed_ones",
    },
    "ifsq_train/tasks/test_task_details.py": {
        "unlabelled trained as class 0": "test_unlabelled_samples_train_the_null_class",
        "group weights ignored on the quick path": "test_group_weights_weigh_the_groups",
        "tokenizer in train mode in discriminator steps": (
            "test_discriminator_steps_do_not_move_the_tokenizer"
        ),
    },
    "data_pipelines/storage/test_order_of_writes.py": {
        "no fsync of a checkpoint's file": "test_data_then_name_then_folder",
        "written in place": "test_a_refused_operation_leaves_old_or_new_and_no_rest",
        "folder not synced": "test_data_then_name_then_folder",
        "marker before the table": "test_a_dataset_exists_once_its_manifest_does",
        "marker before the token table": "test_a_token_dataset_exists_once_tokens_json_does",
    },
    "data_pipelines/test_digests.py": {
        "window missing from the digest": "test_plan",
    },
    "ifsq_train/evaluation/test_manifold_many.py": {
        "only the first rows of a manifold": "test_all_points_count",
    },
    "launchers/on_kubernetes/test_rayjob.py": {
        "the profile's variables beat the user's": (
            "test_the_user_s_environment_beats_the_profile_s_and_that_the_defaults"
        ),
        "object store a tenth": "test_the_object_store_is_a_quarter_of_the_shared_memory",
    },
    "launchers/on_kubernetes/test_pod_log.py": {
        "last line lost": "test_the_last_line_of_an_ended_log_needs_no_line_break",
    },
    "ifsq_train/models/test_first_state_and_modes.py": {
        "no zero initialisation": "test_a_new_dit_predicts_nothing_and_its_blocks_do_nothing",
        "moments move in evaluation": "test_running_moments_move_in_training_only",
        "no clamp on the plain path": "test_cells_of_equal_width_stay_within_the_levels",
    },
    "data_pipelines/images/decoders/test_image_pixels.py": {
        "YCCK taken for common": "test_decodes_as_the_released_code_on_both_decoders",
    },
}
CAUGHT_BY = {
    what: f"{file}::{test}" for file, tests in _TESTS.items() for what, test in tests.items()
}
"""The test below tests/unit that is to notice each; `--known` asks no other."""
