"""Takes each protection out of a copy of the package, in turn, and sees its test fail.

    python tests/soak/mutants.py [WORD ...]    all, or those that have one of the words in a name
    python tests/soak/mutants.py --check       only look whether each still fits the code

A mutant names a piece of code that stands once in the package, in whatever module, and what takes
its place; blanks, line ends and commas before a closing bracket do not count.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BAD = "tests/test_bad_input.py"
FILES = "tests/test_files.py"
LOOKING = "tests/test_looking.py"
FOLDERS = "tests/test_folders.py"
MUTATIONS = "tests/test_mutations.py"
PROMISES = "tests/test_promises.py"
RAY = "tests/test_ray.py"
RECOMMENDED = "tests/test_recommended.py"
REPORT = "tests/test_report.py"
REPRODUCIBLE = "tests/test_reproducible.py"
TRAIN = "tests/test_train.py"
READING = "tests/test_reading.py"
SCHEDULE = "tests/test_schedule.py"
CLUSTERS = "tests/test_clusters.py"
STABILITY = "tests/test_stability.py"
TL = "tests/test_tl.py"
NOVELTY = "tests/test_novelty.py"
LABELS = "tests/test_labels.py"
COUNT_SPLITTING = "tests/test_count_splitting.py"
DIFFERENTIAL = "tests/test_differential.py"
NUMBERS = "tests/test_numbers.py"
NEW_CELLS = "tests/test_new_cells.py"
FORMATS = "tests/test_other_formats.py"
ODD = "tests/test_odd_inputs.py"
MACHINE_CODE = "tests/test_machine_code.py"
OFFSETS = "tests/test_offsets.py"
BATCH_EFFECT = "tests/test_batch_effect.py"
COVARIATES = "tests/test_covariates.py"
DISTRIBUTED = "tests/test_distributed.py"
PARTS = "tests/test_parts.py"
COMMANDS = "tests/test_commands.py"
COMPARING = "tests/test_comparing.py"
ESTIMATOR = "tests/test_estimator.py"
PROGRESS = "tests/test_progress.py"
STOPPING = "tests/test_stopping.py"
SECOND = "tests/test_second_training.py"
PROOF = "tests/test_proof.py"


class Mutant(NamedTuple):
    what: str  # is removed or changed
    old: str  # code
    new: str  # code in its place
    test: str  # the file with the test that must fail ...
    chosen: str  # ... and which of its tests, as pytest -k takes it


MUTANTS = [
    Mutant(
        "noise of a draw that is the cell's own",
        "eps = torch.randn(mean.shape, dtype=mean.dtype, generator=generator)",
        "eps = torch.randn(mean[:1].shape, dtype=mean.dtype, generator=generator)",
        NEW_CELLS,
        "as_unsure_as_the_model",
    ),
    Mutant(
        "spread of a draw",
        "return torch.stack([q.x_mean, q.x_log_std], dim=1)",
        "return torch.stack([q.x_mean, q.x_log_std / 2], dim=1)",
        NEW_CELLS,
        "as_unsure_as_the_model",
    ),
    Mutant(
        "bars of a quiet command",
        'with silence(bool(kwargs.get("quiet"))):',
        "with silence(False):",
        PROGRESS,
        "quiet",
    ),
    Mutant(
        "alpha that is asked for",
        "clusters.cluster_tree(in_both, alpha, type_of=types)",
        "clusters.cluster_tree(in_both, type_of=types)",
        CLUSTERS,
        "alpha_is_the_evidence",
    ),
    Mutant(
        "alpha of the range of clusters",
        "merge_components(gamma, times, alpha, type_of=type_of)",
        "merge_components(gamma, times, type_of=type_of)",
        CLUSTERS,
        "alpha_is_the_evidence",
    ),
    Mutant(
        "genes of several files by their place",
        "joined = joined[:, genes].copy()",
        "pass",
        PARTS,
        "genes_of_all_files",
    ),
    Mutant(
        "cells of several files of one name",
        "again = [name for name, n in seen.items() if n > 1]",
        "again = []",
        PARTS,
        "names_of_cells",
    ),
    Mutant(
        "one of several files twice",
        'if told["sha256"] == part.told["sha256"]:',
        "if False:",
        PARTS,
        "what_is_refused",
    ),
    Mutant(
        "one of several files that changes",
        "check_unchanged(file, before)",
        "pass",
        PARTS,
        "changes_while_it_is_read",
    ),
    Mutant(
        "genes of one of several files to embed",
        "missing = match_genes(*of).missing",
        "missing = []",
        PARTS,
        "before_the_model_is_asked",
    ),
    Mutant(
        "only genes of all files are embedded",
        'join="outer", check=check',
        'join="inner", check=check',
        PARTS,
        "lacks_is_zero",
    ),
    Mutant(
        "one of several files to embed is written over",
        "check_path(Path(path))",
        "pass",
        PARTS,
        "before_the_model_is_asked",
    ),
    Mutant(
        "the batch of one of several files to embed",
        "needed = dict(batch_key=key, keys=keys)",
        "needed = {}",
        PARTS,
        "whose_batch_is_a_column",
    ),
    Mutant(
        "copies of gmvae_embed are parts",
        "found = [f for f in found if not is_annotated(f, EMBEDDED)]",
        "pass",
        PARTS,
        "as_each_alone",
    ),
    Mutant(
        "parts stay in memory when they are joined",
        "part.cells.X = None",
        "pass",
        PARTS,
        "little_more_memory",
    ),
    Mutant(
        "genes of a part in the order of its file",
        "y = csr_matrix((y.data[kept], column[kept], ends), shape=shape) y.sort_indices()",
        "y = csr_matrix((y.data[kept], column[kept], ends), shape=shape)",
        PARTS,
        "genes_of_all_files",
    ),
    Mutant(
        "counts in memory are looked at from the first row of each block",
        "yield start, counts[start : start + 8192]",
        "yield 0, counts[start : start + 8192]",
        "tests/test_counts.py",
        "far_down",
    ),
    Mutant(
        "questions are not shared",
        "return answering().by_rows(len(rows), network.preset.batch_size, answers)",
        "return answers(slice(0, len(rows)))",
        DISTRIBUTED,
        "reads_the_counts_of_its_cells",
    ),
    Mutant(
        "shared cells are not cut as mini-batches",
        "min(n, size * (steps * rank // self.world))",
        "n * rank // self.world",
        DISTRIBUTED,
        "reads_the_counts_of_its_cells",
    ),
    Mutant(
        "an error of one process stays there",
        "own = error",
        "raise",
        DISTRIBUTED,
        "error_of_one_process",
    ),
    Mutant(
        "each process writes what was embedded",
        "if answering().first: write_annotated",
        "if True:\n    write_annotated",
        DISTRIBUTED,
        "written_by_the_first",
    ),
    Mutant(
        "each process prints what was embedded",
        "if follows(): return report",
        "if False: return report",
        DISTRIBUTED,
        "written_by_the_first",
    ),
    Mutant(
        "explore.html without the types",
        'groupings["type"] = report.types',
        "pass",
        LABELS,
        "command_and_the_line",
    ),
    Mutant(
        "types of an earlier run on the pages of this one",
        'if "types" not in cells.uns.get("gmvae", {}):',
        'if "gmvae_type" not in cells.obs:',
        LABELS,
        "earlier_run",
    ),
    Mutant(
        "processes beside the first train without covariates",
        "return follow_run(read, Path(out), **settings, **labels, **covariates)",
        "return follow_run(read, Path(out), **settings)",
        COVARIATES,
        "follows_is_told",
    ),
    Mutant(
        "a sweep forgets covariates when it looks at folders",
        "wanted = run_settings(read, *of_run, **told)",
        "wanted = run_settings(read, *of_run)",
        COVARIATES,
        "sweep_takes",
    ),
    Mutant(
        "a gene that is not there is found out after training",
        "genes = find_genes(genes, read.file_genes)",
        "genes = list(genes)",
        COMMANDS,
        "gene_that_is_not_there",
    ),
    Mutant(
        "cells that were left out are compared",
        "found[left_out] = None",
        "pass",
        COMPARING,
        "left_out",
    ),
    Mutant(
        "a file that changes while it is compared",
        "check_unchanged(path, before)",
        "pass",
        COMPARING,
        "codes_and_a_sentence",
    ),
    Mutant(
        "each bar counts a minute of its own",
        "elif now - Progress.told >= SECONDS and now - self.begun >= SHORT:",
        "elif now - self.begun >= SECONDS:",
        PROGRESS,
        "line_a_minute",
    ),
    Mutant(
        "UMAP is silent",
        'with working("UMAP"), warnings.catch_warnings():',
        "with warnings.catch_warnings():",
        PROGRESS,
        "long_stages",
    ),
    Mutant(
        "new cells without the covariates of the fitted ones",
        "if covariates is None and told:",
        "if False:",
        ESTIMATOR,
        "table_of_covariates",
    ),
    Mutant(
        "if mixed is as found",
        "dealt[cells] = rng.permutation(dealt[cells])",
        "pass",
        BATCH_EFFECT,
        "planted_effect",
    ),
    Mutant(
        "an effect that was never there is praised",
        "if to_gain < LITTLE:",
        "if to_gain < 0:",
        BATCH_EFFECT,
        "hardly_there",
    ),
    Mutant(
        "each call draws other cells",
        "some = np.sort(rng.permutation(len(batch))[:SAMPLE])",
        "some = np.sort(np.random.permutation(len(batch))[:SAMPLE])",
        BATCH_EFFECT,
        "sampled_the_same_way",
    ),
    Mutant(
        "covariates are scaled by cells that are held out",
        "values = b[rows, 1:][:, columns]",
        "values = b[:, 1:][:, columns]",
        COVARIATES,
        "alone_set_the_scale",
    ),
    Mutant(
        "covariates in the order they are named in",
        "for key in sorted([*categorical, *continuous]):",
        "for key in [*categorical, *continuous]:",
        COVARIATES,
        "order_of_the_names",
    ),
    Mutant(
        "the same column twice is no error",
        "nested = follows_from(columns[a], columns[b])",
        "nested = False",
        COVARIATES,
        "refused_before",
    ),
    Mutant(
        "genes are compared each at the cell's own covariates",
        "as_of = every_value(*told, model.network.design)",
        "as_of = {model.batch_key: model.batches}",
        COVARIATES,
        "same_covariates",
    ),
    Mutant(
        "a column of all cells is set in none",
        "changed.view(len(b), -1)[:, column] = value",
        "changed.view(len(b), -1)[:, column].add(value)",
        COVARIATES,
        "decoding_as_of",
    ),
    Mutant(
        "cells with other covariates are the same cells",
        "digest.update(np.ascontiguousarray(batch, dtype=dtype))",
        "digest.update(np.ascontiguousarray(batch.reshape(len(batch), -1)[:, 0], dtype=np.int64))",
        COVARIATES,
        "another_model",
    ),
    Mutant(
        "processes do not sum their gradients",
        "grad.copy_(of_all.view_as(grad))",
        "pass",
        DISTRIBUTED,
        "of_one and blog",
    ),
    Mutant(
        "weights that begin to learn later are not summed",
        "grads = [p.grad for p in network.parameters() if p.grad is not None]",
        "grads = [p.grad for n, p in network.named_parameters()\n"
        "        if p.grad is not None and n != 'heads.log_r.weight']",
        DISTRIBUTED,
        "of_one and recommended",
    ),
    Mutant(
        "each process aligns by the sums of its own cells",
        "of_all = dict(mean=draws.mean, total=team.total)",
        "of_all = dict(mean=draws.mean)",
        DISTRIBUTED,
        "of_one and recommended",
    ),
    Mutant(
        "free nats of the own cells alone",
        "whole: Tensor = SumOfAll.apply(own_part(t, *dim, share=share))",
        "whole = own_part(t, *dim, share=share)",
        DISTRIBUTED,
        "of_one and blog",
    ),
    Mutant(
        "tiles as wide as a process's own cells allow",
        "rows = (M_heads or M) * (heads.tile_cells or N)",
        "rows = (M_heads or M) * N",
        DISTRIBUTED,
        "of_one and blog",
    ),
    Mutant(
        "each process reads every shard",
        "return range(rank * SHARDS // world, (rank + 1) * SHARDS // world)",
        "return range(SHARDS)",
        DISTRIBUTED,
        "reads_its_share",
    ),
    Mutant(
        "errors of expression as if counts were Poisson",
        "add(square, mu + mu * logits.exp())",
        "add(square, mu)",
        DIFFERENTIAL,
        "share_is_averaged",
    ),
    Mutant(
        "groups are decoded each in its own batch",
        "log_r, logits = network.likelihood_params(y, code, x)",
        "log_r, logits = network.likelihood_params(y, b, x)",
        DIFFERENTIAL,
        "share_is_averaged",
    ),
    Mutant(
        "changes are not shrunken",
        "weight = tau**2 / scale**2",
        "weight = np.ones_like(scale)",
        DIFFERENTIAL,
        "than_was_asked",
    ),
    Mutant(
        "markers by cells that were trained on",
        "first, second, _ = halve_cells(model.network, cells, model.seed, rows)",
        "first, second, _ = halve_cells(model.network, cells, model.seed, None)",
        DIFFERENTIAL,
        "other_half",
    ),
    Mutant(
        "markers by the counts that chose the clusters",
        "csr_matrix(second.counts)[:, there]",
        "csr_matrix(first.counts)[:, there]",
        DIFFERENTIAL,
        "other_half",
    ),
    Mutant(
        "labels of held-out cells name clusters",
        "rows = with_each_type(rows, self.train_idx, self.labels)",
        "rows = np.arange(len(self.labels))",
        LABELS,
        "held_out_cells",
    ),
    Mutant(
        "labels that were trained with set the temperature",
        "rows = self.test_idx[self.labels[self.test_idx] >= 0]",
        "rows = self.train_idx[self.labels[self.train_idx] >= 0]",
        LABELS,
        "temperature_alone",
    ),
    Mutant(
        "a label may be wrong and none of these",
        "wrong = SMOOTHING * (1 - none) / types.shape[1]",
        "wrong = SMOOTHING / types.shape[1]",
        LABELS,
        "may_be_wrong",
    ),
    Mutant(
        "answers are made surer",
        "TEMPERATURES = torch.linspace(0, 2, 201",
        "TEMPERATURES = torch.linspace(-2, 2, 201",
        LABELS,
        "never_below_1",
    ),
    Mutant(
        "a label leaves all components",
        "return (codes < 0) | (codes == type_of)",
        "return (codes < 0) | (codes != type_of)",
        LABELS,
        "label_leaves",
    ),
    Mutant(
        "a stray label names a cluster",
        "names[have_no_labels(of.sum(1), cells, known.mean())] = -1",
        "names[of.sum(1) < 0] = -1",
        LABELS,
        "stray_label",
    ),
    Mutant(
        "two types become one cluster",
        "if two_types.any():",
        "if False:",
        LABELS,
        "never_one_cluster",
    ),
    Mutant(
        "novelty sees the counts alone",
        "return np.maximum(z_D, z_R - 1)",
        "return z_R",
        NOVELTY,
        "at_its_depth",
    ),
    Mutant(
        "novelty sees the place alone",
        "return np.maximum(z_D, z_R - 1)",
        "return z_D",
        NOVELTY,
        "at_its_depth",
    ),
    Mutant(
        "novelty among cells of any depth",
        "k, values = min(N_LIKE, len(order)), known[order]",
        "k, values = len(order), known[order]",
        NOVELTY,
        "at_its_depth",
    ),
    Mutant(
        "novelty among cells that were trained on",
        "rows = test if held_out else train",
        "rows = train",
        NOVELTY,
        "few_held_out or keeps_what",
    ),
    Mutant(
        "cells of both clusters count twice in either",
        "both.sum(0).to_numpy()) - both",
        "both.sum(0).to_numpy())",
        STABILITY,
        "jaccard_is",
    ),
    Mutant(
        "a dictionary by our clusters, not by the other's",
        "dictionary = prob.T @ other / np.where(cells > 0, cells, 1)",
        "dictionary = prob.T @ other / prob.sum(0)[:, None]",
        STABILITY,
        "law_of_total",
    ),
    Mutant(
        "confidence over seeds of the most probable reading",
        "[np.arange(len(prob)), prob.argmax(1)].clip(0, 1)",
        ".max(1).clip(0, 1)",
        STABILITY,
        "draws_the_line",
    ),
    Mutant(
        "other seeds for other counts",
        'if missing or sha256 != settings["counts_sha256"]:',
        "if missing:",
        STABILITY,
        "other_counts",
    ),
    Mutant(
        "a foreign table is replaced by that of the seeds",
        "check_own_files(run, SEED_FILES, overwrite)",
        "pass",
        STABILITY,
        "foreign_tables",
    ),
    Mutant(
        "a user's own map is replaced",
        "if is_ours:\n        adata.obsm",
        "if True:\n        adata.obsm",
        TL,
        "user_has",
    ),
    Mutant(
        "offsets start at full size",
        "prior.components.weight.mul_(OFFSET_SCALE)",
        "pass",
        OFFSETS,
        "hardly_moves",
    ),
    Mutant(
        "offsets are nothing, and w has no gradient",
        "prior.components.weight.mul_(OFFSET_SCALE)",
        "prior.components.weight.zero_()",
        OFFSETS,
        "hardly_moves",
    ),
    Mutant(
        "all centres start in one place",
        "prior.means.normal_()",
        "prior.means.zero_()",
        OFFSETS,
        "hardly_moves",
    ),
    Mutant(
        "centres keep the spreads that they were drawn with",
        "prior.log_stds.zero_()",
        "pass",
        OFFSETS,
        "hardly_moves",
    ),
    Mutant(
        "offsets start as the network does",
        'if p.prior == "offsets": start_at_centres(self.prior)',
        "pass",
        OFFSETS,
        "leaves_the_offsets",
    ),
    Mutant(
        "means and spreads of centres change places",
        "return self.components.bias.view(1, 1, self.K, 2, -1)[..., 0, :]",
        "return self.components.bias.view(1, 1, self.K, 2, -1)[..., 1, :]",
        OFFSETS,
        "what_w_adds",
    ),
    Mutant(
        "centres are a copy",
        "return self.components.bias.view(1, 1, self.K, 2, -1)[..., 0, :]",
        "return self.components.bias.clone().view(1, 1, self.K, 2, -1)[..., 0, :]",
        OFFSETS,
        "written_into_the_centres",
    ),
    Mutant(
        "a prior network is placed at the end",
        'for_good = preset.init == "data" and preset.prior != "network"',
        'for_good = preset.init == "data"',
        OFFSETS,
        "placed_once",
    ),
    Mutant(
        "centres with offsets are placed once",
        'for_good = preset.init == "data" and preset.prior != "network"',
        'for_good = preset.init == "data" and preset.prior == "parameters"',
        OFFSETS,
        "placed_twice",
    ),
    Mutant(
        "offsets are learned from the start",
        "self.prior.components.weight.requires_grad_(resting)",
        "pass",
        OFFSETS,
        "not_before",
    ),
    Mutant(
        "centres learn on while the encoder rests",
        "self.prior.components.bias.requires_grad_(not resting)",
        "pass",
        OFFSETS,
        "rest_with_the_encoder",
    ),
    Mutant(
        "w rests with the encoder",
        "self.prior.components.bias.requires_grad_(not resting)",
        "self.prior.components.bias.requires_grad_(not resting); modules.append(self.q_w)",
        OFFSETS,
        "not_before",
    ),
    Mutant(
        "the centres of a prior network rest with the encoder",
        "elif self.n_w: modules.append(self.q_w)",
        "elif self.n_w: modules += [self.q_w, self.prior]",
        OFFSETS,
        "placed_once",
    ),
    Mutant(
        "the wrong axes have centres",
        'if settings["original_reshape"] and has_centres:',
        "if False:",
        OFFSETS,
        "wrong_axes",
    ),
    Mutant(
        "a fork without what is below it",
        "below[n + row] = below[a] + below[b]",
        "below[n + row] = below[a]",
        CLUSTERS,
        "tree_above",
    ),
    Mutant(
        "a tree of one cluster is drawn",
        "if not len(nodes):",
        "if False:",
        CLUSTERS,
        "no_tree_to_draw",
    ),
    Mutant(
        "alpha is that of one pair",
        "alpha / max(1, K * (K - 1) // 2)",
        "alpha",
        CLUSTERS,
        "all_pairs_together",
    ),
    Mutant(
        "two are two whatever kappa says",
        "(agreement(changed, by_chance) >= level) & (p <= alpha)",
        "p <= alpha",
        CLUSTERS,
        "cells_do_not_follow",
    ),
    Mutant(
        "two are two whatever the chance",
        "(agreement(changed, by_chance) >= level) & (p <= alpha)",
        "agreement(changed, by_chance) >= level",
        CLUSTERS,
        "all_pairs_together",
    ),
    Mutant(
        "clusters where all pairs are told apart last",
        "n_clusters = max(n_clusters, K - step)",
        "n_clusters = K - step",
        CLUSTERS,
        "greedy_search",
    ),
    Mutant(
        "half of the changes are counted",
        "return 2 * shared, by_chance",
        "return shared, by_chance",
        CLUSTERS,
        "table_of_two_looks",
    ),
    Mutant(
        "each cell counts once when merging",
        "seen = gamma if times is None else gamma * times.double()[:, None]",
        "seen = gamma",
        CLUSTERS,
        "count_twice",
    ),
    Mutant(
        "clusters numbered by the smallest",
        "size.argsort(descending=True, stable=True)",
        "size.argsort(stable=True)",
        CLUSTERS,
        "numbered_by",
    ),
    Mutant(
        "clusters numbered only where components are merged",
        "if epoch + 1 == total:",
        "if self.preset.merge and epoch + 1 == total:",
        NUMBERS,
        "largest_cluster",
    ),
    Mutant(
        "cluster probabilities in the order of the components",
        "return gamma[..., of.argsort()]",
        "return gamma",
        NUMBERS,
        "names_the_same",
    ),
    Mutant(
        "an older model's clusters are all one",
        "start = torch.arange(len(start))",
        "pass",
        NUMBERS,
        "older_model",
    ),
    Mutant(
        "the worse model is called better",
        'word = "better" if there < here else "worse"',
        'word = "worse" if there < here else "better"',
        "tests/test_in_words.py",
        "better_is_lower",
    ),
    Mutant(
        "a component shrinks to a cell",
        ".clamp_min(MIN_STD**2)",
        ".clamp_min(0)",
        CLUSTERS,
        "shrinks_to_a_cell",
    ),
    Mutant(
        "means without the draws",
        "(x - centre[label]) ** 2 + q_var",
        "(x - centre[label]) ** 2",
        CLUSTERS,
        "spread_of_draws",
    ),
    Mutant(
        "components learn while the encoder rests",
        "modules.append(self.prior)",
        "pass",
        CLUSTERS,
        "rest_with_the_encoder",
    ),
    Mutant(
        "a file that was replaced gets the clusters",
        "check_unchanged(path)  # the copy: it changes no more",
        "pass",
        FOLDERS,
        "replaced_while_training or between_reading",
    ),
    Mutant(
        "a file may change while it is read",
        "if file_state(path) != before:",
        "if False:",
        FOLDERS,
        "while_it_is_read",
    ),
    Mutant(
        "a file may change while it is embedded",
        "if file_state(file) != before:",
        "if False:",
        FOLDERS,
        "while_it_is_embedded",
    ),
    Mutant(
        "batches are not of the run",
        "batches = names_sha256(obs[batch_key].astype(str))",
        "pass",
        FOLDERS,
        "other_batches",
    ),
    Mutant(
        "the model is not compared when run.json is lost",
        "compare_model(out, model, epochs)",
        "pass",
        FOLDERS,
        "model_of_other_cells",
    ),
    Mutant(
        "a page of several states",
        "config, state = check_files(out, names)",
        "config, _, state = __import__('gmvae_nb.model_folder').model_folder.read_model(out)",
        FOLDERS,
        "one_state",
    ),
    Mutant(
        "a page with the cells of another model",
        "if made_of not in (None, weights_sha256(state)):",
        "if False:",
        FOLDERS,
        "annotated_file_of_another_run",
    ),
    Mutant(
        "a model is annotated whatever the folder holds",
        "if weights_sha256(read_model(out)[2]) != ours:",
        "if False:",
        FOLDERS,
        "own_cells_and_state",
    ),
    Mutant(
        "cells in memory in another order",
        "if names is not None and list(source.obs_names) != list(names):",
        "if False:",
        FOLDERS,
        "were_sorted",
    ),
    Mutant(
        "config.json without a checksum of itself",
        "return is_ours and digest == found",
        "return True",
        FOLDERS,
        "one_bit_is_told",
    ),
    Mutant(
        "another run's model is a stopped write",
        'if difference:\n    raise ValueError(\n        f"{path} is not of this run',
        'if False:\n    raise ValueError(\n        f"{path} is not of this run',
        FOLDERS,
        "another_run_is_not_a_stopped",
    ),
    Mutant(
        "padding of a model's header not compared",
        "if done == before and not is_same_as_written(path, state):",
        "if False:",
        FOLDERS,
        "padding",
    ),
    Mutant(
        "what stands beside a model is not mended",
        'if not is_whole or history != listed.get("history.csv"):',
        "if False:",
        FOLDERS,
        "without_any_advice or mends_it",
    ),
    Mutant(
        "the lock is not looked at again",
        "if _identity(self.folder / LOCK_FILE) != self._identity:",
        "if False:",
        FOLDERS,
        "deleted_while",
    ),
    Mutant(
        "results that cannot be written are lost",
        "keep_cells(out, obs, obsm, names)",
        "pass",
        FOLDERS,
        "as_h5ad_are_kept",
    ),
    Mutant(
        "no sentence for too little memory",
        "others = isinstance(error, (RuntimeError, ImportError, SystemError))",
        "others = False",
        FOLDERS,
        "too_little_memory",
    ),
    Mutant(
        "the size of a disk is not looked at",
        "if free < n_bytes:",
        "if False:",
        FOLDERS,
        "too_small",
    ),
    Mutant(
        "pipes and devices are read",
        "if not stat.S_ISREG(found.st_mode):",
        "if False:",
        FILES,
        "no_regular_file",
    ),
    Mutant(
        "headers of any length are read",
        "if length > most:",
        "if False:",
        FOLDERS,
        "long_header",
    ),
    Mutant(
        "weights of any size are read",
        "if found.st_size > MOST_SPARSE and stored < found.st_size / 2:",
        "if False:",
        FOLDERS,
        "holes",
    ),
    Mutant(
        "results that are not finite are written",
        "if not finite.all():",
        "if False:",
        FOLDERS,
        "results_that_are_not_finite",
    ),
    Mutant(
        "K and seed are looked at when they are used",
        "if K is not None and not (is_whole(K) and 1 <= K <= 10_000):",
        "if False:",
        FOLDERS,
        "one_bad_K",
    ),
    Mutant(
        "any seed",
        "if not is_whole(seed) or not 0 <= seed < 2**32:",
        "if False:",
        FOLDERS,
        "seed_that_k_means",
    ),
    Mutant(
        "any share of genes",
        "if not isinstance(min_matched, Real) or not 0 <= min_matched <= 1:",
        "if False:",
        FOLDERS,
        "share_of_genes",
    ),
    Mutant(
        "files written in place",
        "write(tmp)",
        "write(path)\n__import__('shutil').copy(path, tmp)",
        PROMISES,
        "random_moments or full_disk",
    ),
    Mutant(
        "file not flushed",
        'with open(tmp, "rb+") as file: os.fsync(file.fileno())',
        "pass",
        PROMISES,
        "flushed_then_renamed",
    ),
    Mutant(
        "folder not flushed",
        "_sync_folder(path.parent)",
        "pass",
        PROMISES,
        "flushed_then_renamed",
    ),
    Mutant(
        "temporary file elsewhere",
        "tmp = path.with_name(",
        "tmp = Path('/dev/shm').joinpath(",
        PROMISES,
        "flushed_then_renamed",
    ),
    Mutant(
        "no sentence for a full disk",
        "filename is not None and filename not in ours",
        "True",
        PROMISES,
        "full_disk or may_not_grow or read_only",
    ),
    Mutant(
        "left-over deleted without care",
        "with contextlib.suppress(OSError): tmp.unlink()",
        "tmp.unlink()",
        PROMISES,
        "read_only",
    ),
    Mutant(
        "a file written without ceremony",
        "write_atomically(path, lambda tmp: tmp.write_text(text",
        "(lambda f: f(path))(lambda tmp: tmp.write_text(text",
        PROMISES,
        "everything_is_written",
    ),
    Mutant(
        "checksums not compared",
        "if checksum(folder / name) == sums[name]}",
        "}",
        PROMISES,
        "verify_names",
    ),
    Mutant(
        "checksums of files outside",
        "if Path(name).name != name:",
        "if False:",
        PROMISES,
        "file_outside",
    ),
    Mutant(
        "the model's checksum not compared",
        'if digest != header["sha256"]:',
        "if False:",
        PROMISES,
        "nothing_runs",
    ),
    Mutant(
        "settings and shapes not checked",
        "check_model(config, rows, state)",
        "pass",
        PROMISES,
        "nothing_runs",
    ),
    Mutant(
        "weights may be NaN when read",
        'bad = not_finite(state)\nif bad:\n    raise ValueError(f"{bad} is not finite")',
        "pass",
        PROMISES,
        "nothing_runs",
    ),
    Mutant(
        "a fallback to pickle",
        "except DAMAGE as error:",
        (
            "except SafetensorError:\n"
            "    import pickle\n"
            "    return pickle.loads(path.read_bytes())\n"
            "except DAMAGE as error:"
        ),
        PROMISES,
        "nothing_runs",
    ),
    Mutant(
        "a fallback to torch.load",
        "except DAMAGE as error:",
        (
            "except SafetensorError:\n"
            "    return torch.load(path, weights_only=False)\n"
            "except DAMAGE as error:"
        ),
        PROMISES,
        "nothing_runs",
    ),
    Mutant(
        "format 1 no longer read",
        "version in range(1, FORMAT + 1)",
        "version in range(2, FORMAT + 1)",
        PROMISES,
        "golden_models",
    ),
    Mutant(
        "the warm-up of older formats not read",
        'if "kl_warmup" in settings:',
        "if False:",
        PROMISES,
        "golden_models",
    ),
    Mutant(
        "the encoder's input changed",
        "scale = 1e4 if",
        "scale = 1.0001e4 if",
        PROMISES,
        "golden_models",
    ),
    Mutant(
        "any format read",
        "is_known = version in range(1, FORMAT + 1)",
        "is_known = True",
        PROMISES,
        "newer_format",
    ),
    Mutant(
        "NaN found at the end of an epoch",
        "if not_finite(dict(net.named_parameters())):",
        "if False:",
        PROMISES,
        "a_nan_stops and 47",
    ),
    Mutant(
        "the loss not looked at",
        "bad = torch.stack(losses).isfinite().logical_not().nonzero().cpu()",
        "bad = []",
        PROMISES,
        "a_nan_stops or exits_with_code",
    ),
    Mutant(
        "the labels of a run in its settings",
        "told |= dict(supervise=supervise, supervise_sha256=names_sha256(labels))",
        "told |= dict(supervise=supervise)",
        "tests/test_runs.py",
        "sweep_of_other_labels",
    ),
    Mutant(
        "the covariates of a run in its settings",
        "[names_sha256(of) for of in columns]",
        "[]",
        "tests/test_runs.py",
        "sweep_of_other_labels",
    ),
    Mutant(
        "seeds of the very cells of the run",
        "difference = first_difference(read_model(run)[0], now)",
        'difference = ""',
        "tests/test_stability.py",
        "other_batches_and_labels",
    ),
    Mutant(
        "0 and 0.0 are one word for no label",
        'alike = (text, f"{text}.0", text.removesuffix(".0"))',
        "alike = (text,)",
        "tests/test_labels.py",
        "number_may_stand",
    ),
    Mutant(
        "a type whose labels are all held out",
        "train, test = with_types_to_train_on((train, test), self.labels)",
        "pass",
        "tests/test_labels.py",
        "keeps_one_to_train_on",
    ),
    Mutant(
        "not put back after any error",
        "except BaseException as stop:",
        "except (KeyboardInterrupt, FloatingPointError, ConnectionError) as stop:",
        "tests/test_second_training.py",
        "error_at_the_end",
    ),
    Mutant(
        "the counts of a half summed in full",
        "exact = [part.counts.astype(np.float64) for part in halves[:2]]",
        "exact = [part.counts for part in halves[:2]]",
        COUNT_SPLITTING,
        "deep_cells",
    ),
    Mutant(
        "a second training that nobody can be asked about",
        "FEWEST_ASKED + len(self.batches)",
        "FEWEST_ASKED",
        "tests/test_second_training.py",
        "nobody_can_be_asked",
    ),
    Mutant(
        "markers of the matrix that was trained on",
        'return "X" if run.get("where") == "X" else run.get("layer")',
        'return run.get("layer")',
        "tests/test_report.py",
        "matrix_that_was",
    ),
    Mutant(
        "not put back after a NaN",
        "except BaseException as stop:",
        "except KeyboardInterrupt as stop:",
        PROMISES,
        "a_nan_stops",
    ),
    Mutant(
        "the cause not looked for",
        'return f": {where}" if where else ""',
        'return ""',
        PROMISES,
        "a_nan_stops or turned_bad",
    ),
    Mutant(
        "NaN written",
        "bad = not_finite(state)\nif bad:\n    raise FloatingPointError(",
        "if False:\n    raise FloatingPointError(",
        PROMISES,
        "never_written",
    ),
    Mutant(
        "random numbers of an epoch from the clock",
        "self.order = numpy_stream(seed, Stream.ORDER, epoch)",
        "self.order = np.random.default_rng()",
        PROMISES,
        "byte_for_byte or same_seed",
    ),
    Mutant(
        "threads of whoever set them last",
        # either of the two limits OpenMP's threads, and so this takes out both
        "torch.set_num_threads(n_threads())\ntry:\n    with threadpool_limits(n_threads()), ",
        "try:\n    with ",
        REPRODUCIBLE,
        "the_same_bits",
    ),
    Mutant(
        "the type of new tensors that somebody set",
        "torch.set_default_dtype(torch.float32)",
        "pass",
        REPRODUCIBLE,
        "whatever_torch_was_told",
    ),
    Mutant(
        "the type of new tensors put back before the last thread is done",
        "if not _computing:",
        "if True:",
        REPRODUCIBLE,
        "last_of_several_threads",
    ),
    Mutant(
        "precision that somebody set",
        "settings.enter_context(torch.autocast(device, enabled=False))",
        "pass",
        REPRODUCIBLE,
        "whatever_torch_was_told",
    ),
    Mutant(
        "gradients that somebody switched off",
        "settings.enter_context(torch.inference_mode(False))\n"
        "            settings.enter_context(torch.enable_grad())",
        "pass",
        REPRODUCIBLE,
        "whatever_torch_was_told",
    ),
    Mutant(
        "device of new tensors that somebody set",
        'if torch.empty(0).device.type != "cpu":',
        "if False:",
        REPRODUCIBLE,
        "whatever_torch_was_told",
    ),
    Mutant(
        "Adam's moments that are not there, without a word",
        "elif not self.optimizer.state and self.epochs_left:",
        "elif False:",
        TRAIN,
        "loaded_and_trained_further",
    ),
    Mutant(
        "other cells to go on with, without a word",
        "if self._rows and test_idx is None:",
        "if False:",
        TRAIN,
        "loaded_and_trained_further",
    ),
    Mutant(
        "threads not put back",
        "torch.set_num_threads(threads)",
        "pass",
        REPRODUCIBLE,
        "the_same_bits or put_back",
    ),
    Mutant(
        "spinning threads not named",
        "if threads_spin and n_threads() > 1:",
        "if False:",
        REPRODUCIBLE,
        "spinning",
    ),
    Mutant(
        "one stream for all uses",
        "np.random.SeedSequence(seed, spawn_key=(use, *key))",
        "np.random.SeedSequence((seed, *key))",
        REPRODUCIBLE,
        "do_not_meet",
    ),
    Mutant(
        "noise from the global numbers",
        "return draw(N=N, generator=self.generator)",
        "return draw(N=N)",
        TRAIN,
        "in_threads",
    ),
    Mutant(
        "dropout from the global numbers",
        ".bernoulli_(1 - self.p, generator=self.generator)",
        ".bernoulli_(1 - self.p)",
        TRAIN,
        "in_threads",
    ),
    Mutant(
        "networks built at the same time",
        "with _building, own_torch(), torch.random.fork_rng(devices=[]):",
        "with torch.random.fork_rng(devices=[]):",
        REPRODUCIBLE,
        "built_at_the_same_time",
    ),
    Mutant(
        "a folder open to every thread",
        "folder = locked_folder(out) if writes else nullcontext()",
        "folder = nullcontext()",
        TRAIN,
        "two_do_not_train",
    ),
    Mutant(
        "a planned schedule stretched",
        "if done and is_planned(preset) and planned not in (None, max_epochs):",
        "if False:",
        TRAIN,
        "planned",
    ),
    Mutant(
        "a plan looked at too late",
        "check_plan(model.preset, planned, done, max_epochs)",
        "pass",
        "tests/test_runs.py",
        "plan_that_is_not_kept",
    ),
    Mutant(
        "components that tell more than the embedding",
        'return float(min(row["mutual_information"], max(0.0, cost)))',
        'return float(row["mutual_information"])',
        SCHEDULE,
        "components_tell",
    ),
    Mutant(
        "an antibody taken for a gene",
        "position[~is_gene[position]] = -1",
        "pass",
        NEW_CELLS,
        "antibody",
    ),
    Mutant(
        "antibodies numbered with the genes",
        "genes = make_index_unique(names[is_gene])",
        "return make_index_unique(names)",
        NEW_CELLS,
        "antibody",
    ),
    Mutant(
        "a collapse kept silent",
        "if K == 1 or information > COLLAPSED_BELOW:",
        "if True:",
        TRAIN,
        "collapsed",
    ),
    Mutant(
        "genes without a count trained on",
        "keep = np.flatnonzero(asked & seen)",
        "keep = np.flatnonzero(asked)",
        TRAIN,
        "left_out",
    ),
    Mutant(
        "one depth of the halves of cells",
        "halves = at_one_depth(halve_cells(network, cells, other, rows), rng)",
        "halves = halve_cells(network, cells, other, rows)",
        COUNT_SPLITTING,
        "sees_depth_alone",
    ),
    Mutant(
        "halves that are too shallow left out",
        "kept = ((totals >= n) & (totals < MOST_DRAWN)).all(0)",
        "kept = ((totals > 0) & (totals < MOST_DRAWN)).all(0)",
        COUNT_SPLITTING,
        "without_putting_back",
    ),
    Mutant(
        "halves paired within each batch",
        "names, codes = np.unique([first, second], return_inverse=True)",
        "names, codes = np.unique([first, second], return_inverse=True); batch = 0 * batch",
        COUNT_SPLITTING,
        "by_lots",
    ),
    Mutant(
        "the pairing that we have is one of the lots",
        "return float((1 + as_many) / (1 + n_lots))",
        "return float(as_many / n_lots)",
        COUNT_SPLITTING,
        "by_lots",
    ),
    Mutant(
        "lots where a cluster has no cell",
        'random_table(*sizes).rvs(n_lots, "boyett", rng)',
        'random_table(*sizes).rvs(n_lots, "patefield", rng)',
        COUNT_SPLITTING,
        "by_lots",
    ),
    Mutant(
        "counts divided several times",
        "for division in range(N_DIVISIONS):",
        "for division in [0]:",
        COUNT_SPLITTING,
        "sample_is_asked",
    ),
    Mutant(
        "twice the median of the divisions",
        "return min(1.0, 2 * float(np.median(p)))",
        "return float(np.min(p))",
        COUNT_SPLITTING,
        "twice_the_median",
    ),
    Mutant(
        "a branch of few cells asked",
        "if len(batch) - len(np.unique(batch)) < FEWEST_ASKED:",
        "if len(batch) < FEWEST_ASKED:",
        COUNT_SPLITTING,
        "few_cells",
    ),
    Mutant(
        "cells of other branches asked",
        "kept = np.isin(look.first, clusters) & np.isin(look.second, clusters)",
        "kept = np.isin(look.first, clusters)",
        COUNT_SPLITTING,
        "those_alone",
    ),
    Mutant(
        "a second look at what was not proven",
        "asked is None and self.n_clusters == 1 < self.K",
        "self.n_clusters == 1 < self.K",
        SECOND,
        "not_proven",
    ),
    Mutant(
        "an unproven branch stays several clusters",
        "is_one[row] = p[row] > alpha",
        "pass",
        PROOF,
        "one_kind_prove_nothing",
    ),
    Mutant(
        "branches below an unproven one asked",
        "if not is_one[row]:",
        "if True:",
        PROOF,
        "nobody_is_asked",
    ),
    Mutant(
        "two types joined for want of proof",
        "types = set(type_of[np.isin(cluster_of, clusters)]) - {-1}",
        "types = set()",
        PROOF,
        "two_types",
    ),
    Mutant(
        "forks of an unproven branch come first",
        'np.argsort(~is_one, kind="stable")',
        "np.arange(len(is_one))",
        PROOF,
        "of_the_definition",
    ),
    Mutant(
        "an unproven branch resampled in pieces",
        "group[here] = i",
        "pass",
        PROOF,
        "one_component",
    ),
    Mutant(
        "a stricter alpha than lots can give",
        "ask, max(alpha, LEAST_P), types",
        "ask, alpha, types",
        PROOF,
        "least_p",
    ),
    Mutant(
        "cells asked that the model has learned from",
        "held_out = self._own_cells(), self._noise(50), self.seed, self.test_idx",
        "held_out = self._own_cells(), self._noise(50), self.seed, self.train_idx",
        PROOF,
        "alone_are_asked",
    ),
    Mutant(
        "a model of before that nobody asked",
        'if (weights.get("halves_agree_p", torch.zeros(1)) < 0).all():',
        "if False:",
        PROOF,
        "of_before",
    ),
    Mutant(
        "the first training's model of before",
        'for prefix in ("", *others):',
        'for prefix in [""]:',
        SECOND,
        "format_6",
    ),
    Mutant(
        "heights of forks that are not below",
        "height[n + row] = max(kappa[fork], height[a], height[b])",
        "height[n + row] = kappa[: fork + 1].max()",
        PROOF,
        "own_branch",
    ),
    Mutant(
        "clusters that no held-out counts speak for",
        "if n_clusters == 1 or p is not None:",
        "if True:",
        REPORT,
        "speak_for",
    ),
    Mutant(
        "nobody asked of one line of Python",
        'evidence = {} if p is None else {"halves_agree_p": p}',
        "evidence = {}",
        SECOND,
        "says_so_too",
    ),
    Mutant(
        "nobody to ask for one line of Python",
        "for remark in remark_on_proof(model.n_clusters, p):",
        "for remark in []:",
        SECOND,
        "says_so_too",
    ),
    Mutant(
        "the worse of two trainings stays",
        "if n_clusters > 1 and asked is not None:",
        "if self.n_clusters == 1 or asked is None:",
        SECOND,
        "choose",
    ),
    Mutant(
        "a second training that forgets the first",
        'state |= {f"first.{name}": t for name, t in first.state.items()}',
        "pass",
        SECOND,
        "same_bits",
    ),
    Mutant(
        "how many rows of a file are held at a time",
        "full = np.diff(wanted // 2048) > 0",
        "full = far",
        NEW_CELLS,
        "lie_apart",
    ),
    Mutant(
        "a training that was stopped, used without a word",
        "if not left:",
        "if True:",
        NEW_CELLS,
        "was_stopped",
    ),
    Mutant(
        "a second training that the estimate leaves out",
        "again = training if may_train_twice(preset, epochs, enough) else 0.0",
        "again = 0.0",
        COMMANDS,
        "time_that_is_stated",
    ),
    Mutant(
        "a second training where nobody can choose",
        "can_choose = len(self.test_idx) >= FEWEST_ASKED + len(self.batches)",
        "can_choose = True",
        SECOND,
        "one_training",
    ),
    Mutant(
        "Adam's moments not kept",
        "self.config(), self._state(), self._first",
        "self.config(), {n: t for n, t in self._state().items() if n.startswith('network.')}, None",
        PROMISES,
        "byte_for_byte or survives_a_kill",
    ),
    Mutant(
        "wall time in the model file",
        'apart = ("seconds", *others)',
        "apart = others",
        PROMISES,
        "byte_for_byte or same_seed",
    ),
    Mutant(
        "batches in the order of a set",
        "return batch.codes.astype(np.int64), list(batch.categories)",
        (
            "names = list(set(batch.categories))\n"
            "return np.array([names.index(v) for v in batch]), names"
        ),
        PROMISES,
        "same_seed",
    ),
    Mutant(
        "external links followed",
        "if isinstance(link, h5py.ExternalLink):",
        "if False:",
        PROMISES,
        "hostile_h5ad and external_link",
    ),
    Mutant(
        "names told apart by name alone",
        "if address in seen:",
        "if False:",
        PROMISES,
        "hostile_h5ad and (circle or many_names)",
    ),
    Mutant(
        "values from other files",
        "if dataset.external or dataset.is_virtual:",
        "if False:",
        PROMISES,
        "hostile_h5ad and (external_storage or virtual)",
    ),
    Mutant(
        "size declared not compared",
        "if written > 2**20 + 1100 * stored or never > 2**26 + 8 * file_size:",
        "if False:",
        PROMISES,
        "hostile_h5ad and (shape_bomb or filled_bomb)",
    ),
    Mutant(
        "texts not counted",
        "if texts + n_bytes > file_size:",
        "if False:",
        PROMISES,
        "hostile_h5ad and same_text",
    ),
    Mutant(
        "blocks of any size",
        "if found != size:",
        "if False:",
        LOOKING,
        "not_of_its_size and (short or lzf)",
    ),
    Mutant(
        "bombs unpacked whole",
        "if found > size: break",
        "if False: break",
        LOOKING,
        "goes_no_further",
    ),
    Mutant(
        "any filter let in",
        "if not known or not h5py.h5z.filter_avail(number):",
        "if False:",
        LOOKING,
        "unknown_filters",
    ),
    Mutant(
        "deflate twice let in",
        "if packed or len(set(found)) < len(found):",
        "if False:",
        LOOKING,
        "deflate_twice",
    ),
    Mutant(
        "references let in",
        "if h5py.check_string_dtype(dtype) is None:",
        "if False:",
        LOOKING,
        "references",
    ),
    Mutant(
        "looking without bounds",
        "resource.setrlimit(kind, (most, hard))",
        "pass",
        LOOKING,
        "bounds_of_the_process",
    ),
    Mutant(
        "a command starts no small process",
        "during.enter_context(small_looker())",
        "pass",
        LOOKING,
        "before_torch",
    ),
    Mutant(
        "a small process in the terminal's group",
        "os.setpgid(self.pid, self.pid)",
        "pass",
        LOOKING,
        "look_that_is_stopped",
    ),
    Mutant(
        "a stopped look is answered to the next",
        "except BaseException:  # its answer would be taken for that to the next\n"
        "            self.pipe.close()",
        "except BaseException:",
        LOOKING,
        "look_that_is_stopped",
    ),
    Mutant(
        "a copy that still looks is left alone",
        "os.killpg(self.pid, signal.SIGKILL)",
        "os.kill(self.pid, signal.SIGKILL)",
        LOOKING,
        "look_that_is_stopped",
    ),
    Mutant(
        "a small process keeps what is printed to",
        "os.dup2(nowhere, stream)",
        "pass",
        LOOKING,
        "nobody_waits",
    ),
    Mutant(
        "a copy of the owner asks and ends its small process",
        "return os.getpid() == self.owner",
        "return True",
        LOOKING,
        "copy_of_its_owner",
    ),
    Mutant(
        "a small process that is gone already",
        "with suppress(OSError):  # it is gone, and somebody has waited for it",
        "with suppress():",
        LOOKING,
        "this_one_is_copied",
    ),
    Mutant(
        "a small process started where torch is",
        'if can_be_copied() and "torch" not in sys.modules:',
        "if can_be_copied():",
        LOOKING,
        "as_without",
    ),
    Mutant(
        "no process is left, and the command ends",
        "with suppress(OSError):  # no process is left: then as without",
        "with suppress():",
        LOOKING,
        "as_without",
    ),
    Mutant(
        "copies without bounds",
        "limit_resources(os.stat(path).st_size)",
        "pass",
        LOOKING,
        "has_its_bounds",
    ),
    Mutant(
        "a dense matrix of any size",
        "for matrix in matrices(f): _check_matrix_fits(matrix, path)",
        "matrices(f)",
        LOOKING,
        "dense_matrix",
    ),
    Mutant(
        "sparse matrices without lists",
        "_check_no_slash(matrix) check_parts(matrix)",
        "_check_no_slash(matrix)",
        LOOKING,
        "without_its_lists",
    ),
    Mutant(
        "narrow sums",
        'y = y.astype(np.float64) if y.dtype.kind in "biu" else y.copy()',
        "y = y.copy()",
        LOOKING,
        "stored_twice",
    ),
    Mutant(
        "an old copy of a gz",
        "if copy.stat().st_mtime_ns == time: return copy",
        "return copy",
        LOOKING,
        "gz",
    ),
    Mutant(
        "a download lost on a full disk",
        "except ValueError: gz.unlink()",
        "except Exception:\n    gz.unlink()",
        LOOKING,
        "full_disk",
    ),
    Mutant(
        "names sent to the terminal",
        'c if c.isprintable() or c in "\\n\\t" else json_.dumps(c)[1:-1]',
        "c",
        READING,
        "terminal",
    ),
    Mutant(
        "indices not checked",
        "if sparse.issparse(m): check_indices(m, name)",
        "pass",
        BAD,
        "indices or indptr",
    ),
    Mutant(
        "indices on disk not checked",
        "if isinstance(counts, CountsOnDisk): _check_numbers(y, name)",
        "pass",
        BAD,
        "outside",
    ),
    Mutant(
        "all cells made dense",
        "mean, std = team.mean_and_std(self.counts, self.train_idx)",
        (
            "mean, std = team.mean_and_std(type(counts)(counts.toarray()) if hasattr(counts, "
            "'toarray') else counts, self.train_idx)"
        ),
        PROMISES,
        "ever_dense",
    ),
    Mutant(
        "backed file read whole",
        'backed="r" if backed else None',
        "backed=None",
        PROMISES,
        "counts_on_disk",
    ),
    Mutant(
        "a call home",
        "from safetensors import SafetensorError, safe_open",
        (
            "from safetensors import SafetensorError, safe_open\n"
            "import urllib.request\n"
            "try: urllib.request.urlopen('http://127.0.0.1:9/', timeout=1)\n"
            "except OSError: pass"
        ),
        PROMISES,
        "no_network",
    ),
    Mutant(
        "checksum of a download not compared",
        "if sha256 not in (None, found):",
        "if False:",
        PROMISES,
        "verified_before_use",
    ),
    Mutant(
        "a download starts again",
        "part.stat().st_size if part.exists() else 0",
        "0",
        PROMISES,
        "verified_before_use",
    ),
    Mutant(
        "finished runs trained again",
        "return planned == max_epochs and scored == epochs",
        "return False",
        PROMISES,
        "sweep_retries",
    ),
    Mutant(
        "a half-written result stops the sweep",
        "if not is_there or not files_are_whole(out, beside):",
        "if not is_there:",
        PROMISES,
        "sweep_retries",
    ),
    Mutant(
        "left-over files stay",
        "with contextlib.suppress(OSError): _delete_left_over(path.parent)",
        "pass",
        FILES,
        "dead_writer or any_moment",
    ),
    Mutant(
        "files of a live writer deleted",
        "except OSError: continue",
        "except OSError: pass",
        FILES,
        "live_writer",
    ),
    Mutant(
        "files of another machine deleted",
        'folder.glob(f".{_machine_id()}*.lock")',
        'folder.glob(".*.lock")',
        FILES,
        "nothing_else",
    ),
    Mutant(
        "other hidden files deleted",
        r'if not re.fullmatch(r"\.[0-9a-f]{32}\.lock", path.name):',
        "if False:",
        FILES,
        "nothing_else",
    ),
    Mutant(
        "two processes in one folder",
        "lock.acquire(blocking=wait, poll_interval=0.5)",
        "pass",
        PROMISES,
        "two_processes",
    ),
    Mutant(
        "a lock that is none of ours taken",
        'if size and note != b"process ":',
        "if False:",
        ODD,
        "nobody_elses",
    ),
    Mutant(
        "the folder of a refused run left",
        "undo(lock, held)",
        "pass",
        ODD,
        "leaves_no_folder or kept_with",
    ),
    Mutant(
        "who waits does not make the folder anew",
        "except FileNotFoundError: if last: raise",
        "except FileNotFoundError: raise",
        ODD,
        "goes_away or makes_anew_meanwhile",
    ),
    Mutant(
        "numba keeps nothing",
        'options["cache"] = folder is not None',
        'options["cache"] = False',
        MACHINE_CODE,
        "compiled_once",
    ),
    Mutant(
        "numba asks for a folder where there is none",
        'options["cache"] = folder is not None',
        'options["cache"] = True',
        MACHINE_CODE,
        "nothing_asks",
    ),
    Mutant(
        "numba's compilers are not put back",
        "setattr(numba, name, compiler)",
        "pass",
        MACHINE_CODE,
        "as_it_was_found",
    ),
    Mutant(
        "a copy of a process deletes machine code",
        "if os.getpid() == owner:",
        "if True:",
        MACHINE_CODE,
        "not_with_a_copy",
    ),
    Mutant(
        "a missing config.json no damage",
        "return None, [missing_list(folder)]",
        "return None, []",
        FOLDERS,
        "is_missing",
    ),
    Mutant(
        "run.json lost, and the run refused",
        "elif resume and holds_run(out):",
        "elif False:",
        FOLDERS,
        "is_missing",
    ),
    Mutant(
        "a batch column replaced in a copy",
        "check_keys(WRITTEN_COLUMNS, batch_key=batch_key)",
        "pass",
        ODD,
        "keep_the_column",
    ),
    Mutant(
        "lost runs of a cluster not tried again",
        "max_retries=MAX_RETRIES",
        "max_retries=0",
        RAY,
        "worker_is_killed",
    ),
    Mutant(
        "lost runs of a cluster begun again",
        "return train_or_reason(data._replace(",
        (
            "__import__('shutil').rmtree(run['out'], ignore_errors=True)\n"
            "return train_or_reason(data._replace("
        ),
        RAY,
        "worker_is_killed",
    ),
    Mutant(
        "folders of nodes not looked at",
        'if wrong: raise ValueError(f"{name} {wrong}")',
        "pass",
        RAY,
        "does_not_see",
    ),
    Mutant(
        "masks taken for positions",
        'if test_idx.size and test_idx.dtype.kind not in "iu":',
        "if False:",
        BAD,
        "mask or fractions",
    ),
    Mutant(
        "kinds of batches mixed",
        "alike = distinct == len(set(values))",
        "alike = True",
        BAD,
        "batch",
    ),
    Mutant(
        "values of any kind rounded",
        "if y.nnz == 0 or kind_of_values(y) != FRACTIONAL:",
        "if y.nnz == 0:",
        READING,
        "never_rounded",
    ),
    Mutant(
        "rounded by place, not by name",
        "z = np.repeat(hashed(cell_names), np.diff(y.indptr))",
        "z = np.repeat(hashed(range(y.shape[0])), np.diff(y.indptr))",
        READING,
        "any_order_and_company",
    ),
    Mutant(
        "X taken for a layer",
        "for name in adata.layers if name is not None",
        "for name in adata.layers",
        READING,
        "X_is_no_layer",
    ),
    Mutant(
        "counts not looked at",
        "bad = np.flatnonzero(~is_count(y.data))",
        "bad = np.flatnonzero(~is_count(y.data[:20]))",
        BAD,
        "csr or any_shape",
    ),
    Mutant(
        "settings not looked at",
        "if not ALLOWED[name].holds(value):",
        "if False:",
        BAD,
        "n_x or lr or merge",
    ),
    Mutant(
        "both warm-ups at once",
        "if epochs and share:",
        "if False:",
        BAD,
        "both",
    ),
    Mutant(
        "kinds of settings not looked at",
        "if not isinstance(value, kinds) or isinstance(value, bool):",
        "if False:",
        PROMISES,
        "nothing_runs",
    ),
    Mutant(
        "alignment never applied",
        "preset.align > 0 and len(self.batches) > 1",
        "False and len(self.batches) > 1",
        MUTATIONS,
        "alignment_brings",
    ),
    Mutant(
        "a component of one batch is pulled as any other",
        "weight = batch_balance(cells).unsqueeze(-1)",
        "weight = 1.0",
        RECOMMENDED,
        "less_a_component",
    ),
    Mutant(
        "batches of other sizes look unbalanced",
        "share = cells / cells.sum(0).clamp_min(1e-6)",
        "share = cells",
        RECOMMENDED,
        "equal_share",
    ),
    Mutant(
        "batches never moved as a whole",
        "net.alignment(*cells, log_stds, weight < 1, **of_all)",
        "net.alignment(*cells, log_stds, False, **of_all)",
        RECOMMENDED,
        "full_weight",
    ),
    Mutant(
        "input dropout left out",
        "seen.v.values().copy_(self.input_dropout(seen.v.values()))",
        "pass",
        MUTATIONS,
        "input_dropout",
    ),
    Mutant(
        "input dropout in use too",
        "if not self.training or self.p == 0:",
        "if self.p == 0:",
        MUTATIONS,
        "input_dropout",
    ),
    Mutant(
        "a watch that never ends anything",
        "elif epoch - best >= wait:",
        "elif False:",
        SCHEDULE,
        "watch_ends",
    ),
    Mutant(
        "a watch that waits one epoch more",
        "elif epoch - best >= wait:",
        "elif epoch - best > wait:",
        SCHEDULE,
        "watch_ends",
    ),
    Mutant(
        "weights that do not go back",
        "if kept < done and self._best is not None:",
        "if False:",
        SCHEDULE,
        "go_back_with",
    ),
    Mutant(
        "a best epoch that no checkpoint holds",
        "return state | best",
        "return state",
        SCHEDULE,
        "stopped_in_any",
    ),
    Mutant(
        "a rest as long as planned",
        "rest = best / plan.learning * (max_epochs - plan.learning)",
        "rest = max_epochs - plan.learning",
        SCHEDULE,
        "watch_ends",
    ),
    Mutant(
        "passes without end",
        "for_steps = min(for_steps, preset.most_epochs)",
        "pass",
        SCHEDULE,
        "most_epochs",
    ),
    Mutant(
        "learning rate by epoch",
        "done = place(epoch + step / n_steps)",
        "done = place(epoch)",
        MUTATIONS,
        "cosine_falls",
    ),
    Mutant(
        "old moments for placed components",
        "self.optimizer.state.pop(p, None)",
        "pass",
        MUTATIONS,
        "starts_afresh",
    ),
    Mutant(
        "history over mini-batches, not cells",
        "sums.append(torch.stack(of_part).cpu() @ sizes)",
        "sums.append(torch.stack(of_part).mean().cpu() * sizes.sum())",
        MUTATIONS,
        "mean_over_cells",
    ),
    Mutant(
        "cells not resampled",
        "times = torch.from_numpy(drawn)",
        "times = None",
        MUTATIONS,
        "number_of_clusters",
    ),
    Mutant(
        "all numbers of clusters in the range",
        "np.quantile(numbers, [0.025, 0.975])",
        "np.quantile(numbers, [0.0, 1.0])",
        MUTATIONS,
        "number_of_clusters",
    ),
    Mutant(
        "simulated counts without the seed",
        "numpy_stream(seed, Stream.SIMULATION, row)",
        "numpy_stream(0, Stream.SIMULATION, row)",
        MUTATIONS,
        "draws_depend",
    ),
    Mutant(
        "simulated counts without the cell",
        "numpy_stream(seed, Stream.SIMULATION, row)",
        "numpy_stream(seed, Stream.SIMULATION)",
        MUTATIONS,
        "draws_depend",
    ),
    Mutant(
        "draws without the seed",
        "torch_stream(seed, Stream.ANSWERS)",
        "torch_stream(0, Stream.ANSWERS)",
        MUTATIONS,
        "draws_depend",
    ),
    Mutant(
        "noise not in pairs",
        "torch.stack([half, -half], 1)",
        "torch.stack([half, half], 1)",
        MUTATIONS,
        "numbers_that_it_has",
    ),
    Mutant(
        "the types are not asked for",
        'loss = loss + preset.label_weight * mean(terms["label"])',
        "pass",
        LABELS,
        "tells_alike_ones_apart",
    ),
    Mutant(
        "responsibilities are told the label",
        "        log_gamma = responsibilities(x, *mixture)\n",
        "        log_gamma = responsibilities(x, *mixture, allowed)\n",
        LABELS,
        "tells_alike_ones_apart",
    ),
    Mutant(
        "all of a label is believed",
        "loss = -(1 - smoothing) * log_type - smoothing * log_rest",
        "loss = -log_type",
        LABELS,
        "cross_entropy_of_a_label",
    ),
    Mutant(
        "cells without a label are asked for their type",
        "return torch.where(allowed.all(-1), 0.0, loss.mean(0))",
        "return loss.mean(0)",
        LABELS,
        "cross_entropy_of_a_label",
    ),
    Mutant(
        "ever surer",
        ".logsumexp(-1).clamp(min=-SURE)",
        ".logsumexp(-1)",
        LABELS,
        "certain_or_impossible",
    ),
    Mutant(
        "a warm-up that is an epoch late",
        "(epoch + 1) / rise",
        "epoch / rise",
        MUTATIONS,
        "numbers_that_it_has",
    ),
    Mutant(
        "weights do not decay",
        "net.heads.decay(lr * preset.weight_decay / n_train)",
        "pass",
        MUTATIONS,
        "numbers_that_it_has",
    ),
    Mutant(
        "r of the cell from the start",
        'resting and p.dispersion == "cell"',
        'self.preset.dispersion == "cell"',
        MUTATIONS,
        "numbers_that_it_has",
    ),
    Mutant(
        "a centred input is not centred",
        "self.network.v_mean.copy_(mean_input(y, self.network.y_mean))",
        "pass",
        TRAIN,
        "a_centred_input",
    ),
    Mutant(
        "the encoder sees whole cells",
        'told["seen"] = draws.thinned(y, preset.thin_to)',
        'told["seen"] = y',
        MUTATIONS,
        "thinning_hides",
    ),
    Mutant(
        "the decoder describes the thinned cell",
        'terms = net(y, b, *noise, reduction="mean", **told)',
        'terms = net(told.pop("seen", y), b, *noise, reduction="mean", **told)',
        MUTATIONS,
        "thinning_hides",
    ),
    Mutant(
        "what is left of a cell is divided by nothing",
        "total = cell_totals(y).to(mean.dtype).clamp_min(1e-6)",
        "total = cell_totals(y).to(mean.dtype)",
        TRAIN,
        "thinning_leaves_nothing",
    ),
    Mutant(
        "all shards are thinned by one",
        "pieces = zip(values, genes_of_cell, self.thinnings)",
        "pieces = zip(values, genes_of_cell, self.thinnings[:1] * len(values))",
        "tests/test_distributed.py",
        "recommended",
    ),
    Mutant(
        "weights of log r are forgotten while they rest",
        "return not any(w.aminmax())",
        "return True",
        "tests/test_nb_likelihood.py",
        "left_out_only_where",
    ),
    Mutant(
        "the mean moves where log r is clamped",
        "l -= log_r",
        "l -= log_r.clamp(-14, 14)",
        "tests/test_nb_likelihood.py",
        "around_the_clamp",
    ),
    Mutant(
        "the mean moves where log r is clamped, in the parameters",
        "logits = logits - log_r",
        "logits = logits - self.log_r(h)",
        "tests/test_nb_likelihood.py",
        "around_the_clamp",
    ),
    Mutant(
        "no word on a collapsed embedding",
        "notes = [note, remark_on_spread(X)]",
        "notes = [note]",
        "tests/test_metrics.py",
        "a_collapsed_embedding",
    ),
    Mutant(
        "numbers of a preset without an upper end",
        "lambda v: 0 <= v <= most",
        "lambda v: 0 <= v",
        BAD,
        "absurd_setting",
    ),
    Mutant(
        "formulas in tables",
        'return f"\'{value}" if _FORMULA.match(value) else value',
        "return value",
        "tests/test_results.py",
        "are_formulas",
    ),
    Mutant(
        "names on figures as formulas",
        "text.set_parse_math(False)",
        "pass",
        "tests/test_results.py",
        "names_on_the_maps",
    ),
    Mutant(
        "antibodies among the marker genes",
        "return counts[:, is_gene], list(numbered_names(names[is_gene])[0])",
        "return counts, list(numbered_names(names)[0])",
        "tests/test_report.py",
        "antibody",
    ),
    Mutant(
        "a page that obeys every script",
        """allowed = f"'sha256-{base64.b64encode(digest).decode()}'\"""",
        """allowed = "'unsafe-inline'\"""",
        "tests/test_explorer.py",
        "obeys",
    ),
    Mutant(
        "the page to explore takes the place of somebody's file",
        '("clusters.csv", "markers.csv", "report.html", "explore.html")',
        '("clusters.csv", "markers.csv", "report.html")',
        "tests/test_explorer.py",
        "replaces",
    ),
    Mutant(
        "cells that are not there in a subset",
        "if value not in there:",
        "if not there:",
        "tests/test_reading.py",
        "refused_with_what_there_is",
    ),
    Mutant(
        "a map, or a reference of novelty, of an older model",
        "if name not in listed:",
        "if False:",
        "tests/test_commands.py",
        "map_of_the_run",
    ),
    Mutant(
        "threads of another's pool keep denormals",
        "in_each(set_here, None, n, 0)",
        "pass",
        "tests/test_reproducible.py",
        "denormals",
    ),
    Mutant(
        "denormals stay 0 for others",
        "take_denormals_for_zero(were_zero)",
        "take_denormals_for_zero(True)",
        "tests/test_reproducible.py",
        "denormals",
    ),
    Mutant(
        "what flushed before keeps denormals",
        "take_denormals_for_zero(were_zero)",
        "take_denormals_for_zero(False)",
        "tests/test_reproducible.py",
        "denormals",
    ),
    Mutant(
        "a copy waits for threads that it has not",
        "if in_each is not None and n > 1 and not _forked:",
        "if in_each is not None and n > 1:",
        "tests/test_reproducible.py",
        "copy_of_the_process",
    ),
    Mutant(
        "genes that no cell has are compared",
        "there = found.any(0)",
        "there = found.any(0) | True",
        "tests/test_differential.py",
        "not_compared",
    ),
    Mutant(
        "markers among genes that no cell has",
        "np.asarray(assign(first)), cells.genes.position >= 0",
        "np.asarray(assign(first)), cells.genes.position >= -1",
        "tests/test_differential.py",
        "not_compared",
    ),
    Mutant(
        "a gene is named that is likely not to differ",
        'likely = table["proba_de"] > 0.5',
        'likely = table["proba_de"] > -1',
        "tests/test_differential.py",
        "likely_than_not",
    ),
    Mutant(
        "the map of another model",
        "model_of_run(model, Path(run))",
        "pass",
        "tests/test_new_cells.py",
        "another_model",
    ),
    Mutant(
        "a model over a file of its name",
        "if not of_model and (folder / name).exists():",
        "if False:",
        "tests/test_folders.py",
        "of_no_model",
    ),
    Mutant(
        "a page over a file of its name",
        "    check_own_files(out, PAGE_FILES, overwrite)\n",
        "",
        "tests/test_report.py",
        "no_run_has_made",
    ),
    Mutant(
        "a table over the copy, by a link",
        "if os.path.realpath(csv) == os.path.realpath(target):",
        "if csv == target:",
        "tests/test_new_cells.py",
        "two_names",
    ),
    Mutant(
        "cells without a cluster are left out",
        'coded = [integer_codes(of, len(a), "clusters") for of in (a, b)]',
        "coded = [pd.factorize(np.asarray(of, dtype=object)) for of in (a, b)]",
        "tests/test_stability.py",
        "without_a_cluster",
    ),
    Mutant(
        "a run loses the labels of its scores",
        "labels_key = labels_of_run(out, data.cells.obs)",
        "pass",
        "tests/test_commands.py",
        "labels_of_its",
    ),
    Mutant(
        "intervals above the score",
        "np.subtract(drawn, np.mean(drawn) - own)",
        "np.asarray(drawn)",
        "tests/test_metrics.py",
        "holds_the_score",
    ),
    Mutant(
        "cells outside the subset must fit",
        "if not inside.all():",
        "if False:",
        "tests/test_comparing.py",
        "outside_the_subset",
    ),
    Mutant(
        "texts that R's readers cannot open",
        "drop_masks(whole)",
        "pass",
        "tests/test_counts.py",
        "without_masks",
    ),
    Mutant(
        "a mask taken from texts of which some are missing",
        'and not item["mask"][()].any()',
        "",
        "tests/test_counts.py",
        "without_masks",
    ),
    Mutant(
        "options with dashes",
        '.replace("-", "_")',
        "",
        "tests/test_commands.py",
        "taken_with_dashes",
    ),
    Mutant(
        "a command after gmvae under its own name",
        'sys.argv[0].startswith("gmvae ")',
        "False",
        "tests/test_commands.py",
        "as_it_was_called",
    ),
    Mutant(
        "columns that a run writes as its keys",
        "if column in written:",
        "if False:",
        ODD,
        "column_that_the_run_writes_is",
    ),
    Mutant(
        "labels that have changed",
        "if then != labels:",
        "if False:",
        ODD,
        "labels_have_changed",
    ),
    Mutant(
        "any seed of scores",
        "check_seed(seed) cells = _checked_cells(",
        "cells = _checked_cells(",
        ODD,
        "seed_of_scores",
    ),
    Mutant(
        "distances that overflow",
        "if most > MOST_COORDINATE:",
        "if False:",
        ODD,
        "no_distances",
    ),
    Mutant(
        "embeddings that are no numbers",
        'if X.dtype.kind not in "biuf":',
        "if False:",
        ODD,
        "no_distances",
    ),
    Mutant(
        "a batch for every cell",
        '(batch_key, n_batches, "batch"),',
        "",
        ODD,
        "batch_for_every_cell",
    ),
    Mutant(
        "folders in the place of files",
        'if path.exists() and not path.is_file(): what = "a folder"',
        'if False:\n    what = "a folder"',
        ODD,
        "name_of_a_file",
    ),
    Mutant(
        "a model replaced by what it has embedded",
        "if (is_there and is_named) or name in listed_files(folder):",
        "if False:",
        ODD,
        "replace_the_model",
    ),
    Mutant(
        "get it again, whatever is in the file",
        "if other := other_format(path) or other_content(path):",
        "if other := other_format(path):",
        ODD,
        "get_it_again",
    ),
    Mutant(
        "a read that grows with the mini-batch",
        "return max(1, min(64, AT_ONCE // batch_size))",
        "return 64",
        "tests/test_data.py",
        "does_not_grow",
    ),
    Mutant(
        "a damaged run.json",
        "except (FileNotFoundError, NotADirectoryError, KeyError, TypeError):",
        "except (OSError, ValueError, KeyError, TypeError):",
        "tests/test_results.py",
        "named_twice",
    ),
    Mutant(
        "numbers beside themselves as text",
        "if not alike or _mixes_numbers(column):",
        "if not alike:",
        BAD,
        "categories or batch",
    ),
    Mutant(
        "the name of a sample in a folder of Cell Ranger",
        'prefix={prefix!r})" if prefix else line',
        'prefix={prefix!r})" if False else line',
        FORMATS,
        "has_the_prefix",
    ),
    Mutant(
        "a chunk of counts that is missing",
        "if there < of and stored[part].size:",
        "if False:",
        FORMATS,
        "harmed_store",
    ),
    Mutant(
        "the copy of a source that was replaced",
        "if copy.stat().st_mtime_ns == time:",
        "if copy.exists():",
        FORMATS,
        "replaced_is_read_anew",
    ),
    Mutant(
        "codecs within shards",
        'yield from _codecs(codec.get("configuration", {}))',
        "pass",
        FORMATS,
        "harmed_store",
    ),
    Mutant(
        "codecs of old stores",
        'for key in ("compressor", "filters", "codecs", "index_codecs"):',
        'for key in ("codecs", "index_codecs"):',
        FORMATS,
        "old_store_that_runs",
    ),
    Mutant(
        "a copy counted beside its source",
        "found -= {\n            file",
        "found - {\n            file",
        FORMATS,
        "has_its_cells_once or copies_are_not_counted",
    ),
    Mutant(
        "a copy from another time",
        "if first in found and first.stat().st_mtime_ns != _time_of(source):",
        "if False:",
        FORMATS,
        "has_its_cells_once",
    ),
    Mutant(
        "the copy of a table inside the store",
        "while any((source.parent / name).exists() for name in _OF_STORES):",
        "while False:",
        FORMATS,
        "copy_lies_outside",
    ),
    Mutant(
        "genes of another sample",
        "if counts.shape != (len(cells), len(genes)):",
        "if False:",
        FORMATS,
        "harmed_folder",
    ),
    Mutant(
        "a matrix larger than the memory",
        'check_fits(24 * int(size[2]), mtx.name, "read it on a larger machine")',
        "pass",
        FORMATS,
        "harmed_folder",
    ),
    Mutant(
        "antibodies of Cell Ranger",
        "sc.read_10x_h5(source, gex_only=False)",
        "sc.read_10x_h5(source)",
        FORMATS,
        "antibodies",
    ),
    Mutant(
        "a terminal that is closed",
        'STOPS = ("SIGINT", "SIGTERM", "SIGHUP")',
        'STOPS = ("SIGINT", "SIGTERM")',
        STOPPING,
        "each_of_the_signals",
    ),
    Mutant(
        "a second Ctrl-C during the first",
        "if now - self.last >= PAUSE:",
        "if True:",
        STOPPING,
        "each_of_the_signals",
    ),
    Mutant(
        "signals that nohup ignores",
        "if number is None or signal.getsignal(number) == signal.SIG_IGN:",
        "if number is None:",
        STOPPING,
        "stays_ignored",
    ),
    Mutant(
        "a stop that Python has dropped",
        "again.start()",
        "pass",
        STOPPING,
        "drops_comes_again",
    ),
    Mutant(
        "errors of others that Python drops",
        "self.hook(told)",
        "pass",
        STOPPING,
        "told_as_ever",
    ),
    Mutant(
        "a stop taken for an error",
        "if was_stopped(error): resumes",
        "if isinstance(error, KeyboardInterrupt):\n    resumes",
        STOPPING,
        "behind_an_error",
    ),
    Mutant(
        "a stop taken for a damaged model",
        "raise KeyboardInterrupt from None",
        "pass",
        STOPPING,
        "no_damage",
    ),
    Mutant(
        "a log file on a full disk",
        "if self.fileno() != 2 and not isinstance(error, BrokenPipeError):",
        "if not isinstance(error, BrokenPipeError):",
        STOPPING,
        "messages_that_nobody_reads",
    ),
    Mutant(
        "a pipe that is closed",
        "if self.fileno() != 2 and not isinstance(error, BrokenPipeError):",
        "if self.fileno() != 2:",
        STOPPING,
        "closed_pipe",
    ),
    Mutant(
        "files in the place of a closed stream",
        "if stream is None:",
        "if False:",
        STOPPING,
        "in_the_place_of_a_stream",
    ),
    Mutant(
        "a pipe or a device replaced",
        'if path.exists() and not path.is_file(): raise ValueError( f"{path} is a pipe',
        'if False: raise ValueError( f"{path} is a pipe',
        STOPPING,
        "pipe_or_a_device",
    ),
    Mutant(
        "a full disk that blames the source",
        'theirs = theirs and getattr(e, "filename2", None) not in ours',
        "pass",
        STOPPING,
        "names_what_was_to_be_written",
    ),
    Mutant(
        "an epoch that a stop left unwritten",
        "if overwrite or not is_described(path, self.config()):",
        "if False:",
        STOPPING,
        "last_epoch_is_written",
    ),
    Mutant(
        "an estimator of two fits",
        "fitted = copy.copy(self)",
        "fitted = self",
        STOPPING,
        "of_one_fit",
    ),
    Mutant(
        "a folder without the right to write",
        "if not os.access(folder, os.W_OK):",
        "if False:",
        STOPPING,
        "right_to_write",
    ),
    Mutant(
        "a file in the place of a folder for a table",
        "if not folder.is_dir(): raise OSError",
        "if False: raise OSError",
        STOPPING,
        "cannot_be_made",
    ),
    Mutant(
        "checksums of a page",
        "record_checksums(out, *PAGE_FILES)",
        "pass",
        STOPPING,
        "while_nobody_else",
    ),
    Mutant(
        "a copy has its time from the start",
        "        os.utime(path, ns=(time, time))\n",
        "",
        FORMATS,
        "known_from or copies_are_not_counted",
    ),
    Mutant(
        "fold changes of means",
        "mean_out = (1 + sums.sum(0) - sums)",
        "mean_out = (1 + sums)",
        REPORT,
        "higher_in_their",
    ),
    Mutant(
        "an interval of pcr that is too low",
        "centred = drawn - (drawn.mean() - score(np.ones(n)))",
        "centred = drawn",
        "tests/test_metrics.py",
        "holds_the_score_also",
    ),
    Mutant(
        "runs of other lengths are no repeats",
        'found = given["preset"] | given | of_run',
        'found = of_run | given | given["preset"]',
        "tests/test_results.py",
        "other_settings",
    ),
    Mutant(
        "one cluster after both trainings",
        'if last.get("centred_n_clusters") == 1:',
        "if False:",
        SECOND,
        "held_out_cells_choose",
    ),
    Mutant(
        "a merged mixture is judged by its clusters",
        "    if run.preset.merge:\n        number =",
        "    if False:\n        number =",
        "tests/test_in_words.py",
        "cure",
    ),
    Mutant(
        "the cause is that of the weights that were kept",
        "history = run.history.loc[: row.name]",
        "history = run.history",
        "tests/test_in_words.py",
        "the_cause",
    ),
    Mutant(
        "a finished run with a damaged model",
        "            if finished:\n                read_model",
        "            if False:\n                read_model",
        PROMISES,
        "retries_what_failed",
    ),
    Mutant(
        "names of bytes",
        "            check_can_be_written(**{name: text})\n",
        "",
        COMMANDS,
        "no_file_could_hold",
    ),
    Mutant(
        "1.0 is 1",
        '        otherwise = name_among(str(name), known) or map_batch.get("*")',
        '        otherwise = name if name in known else map_batch.get("*")',
        PARTS,
        "a_whole_number",
    ),
    Mutant(
        "integers beside floats of another file",
        "whole = set(kinds.columns[some])",
        "whole = set()",
        PARTS,
        "a_whole_number",
    ),
    Mutant(
        "layers named in capitals",
        'words += map("".join, zip(words, words[1:]))',
        "pass",
        "tests/test_counts.py",
        "however_it_is_spelled",
    ),
    Mutant(
        "held-out cells are not exchanged",
        "if before is not None and not np.array_equal(test, np.sort(before)):",
        "if False:",
        TRAIN,
        "scales",
    ),
    Mutant(
        "a star for the file without the column",
        'if name not in (None, FILE_KEY, *part.cells.obs) and "*" in of:',
        "if False:",
        PARTS,
        "a_star_is_also",
    ),
    Mutant(
        "the folder that a file is in",
        "names += [folder.name for folder in Path(file).absolute().parents]",
        "pass",
        PARTS,
        "is_a_folder",
    ),
    Mutant(
        "new batches are fitted for so many mini-batches",
        "if step == n_steps:",
        "if False:",
        "tests/test_new_batches.py",
        "not_learned",
    ),
]


def pattern(code: str) -> re.Pattern:
    "Finds a piece of code however it is broken into lines."
    found, before = "", ""
    for token in re.findall(r"\w+|[^\w\s]", code):
        if token in ")]}":
            found += r"(?:\s*,)?"
        if before:
            both_words = before[-1].isalnum() and token[0].isalnum()
            found += r"\s+" if both_words else r"\s*"
        found += re.escape(token)
        before = token
    return re.compile(found)


def places(mutant: Mutant, package: Path) -> list[tuple[Path, re.Match]]:
    "Where its code stands."
    found = []
    for path in sorted(package.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        found += [(path, match) for match in pattern(mutant.old).finditer(text)]
    return found


def changed(mutant: Mutant, package: Path) -> tuple[Path, str]:
    "The module with its new code, indented as the old was, in place of the old; as text."
    ((path, match),) = places(mutant, package)
    text = path.read_text(encoding="utf-8")
    before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    indent = "" if before.strip() else before
    new = textwrap.indent(mutant.new, indent).strip()
    return path, text[: match.start()] + new + text[match.end() :]


def misfits(package: Path = ROOT / "gmvae_nb") -> list[str]:
    "The mutants whose code does not stand exactly once in the package, or that are no Python."
    found = []
    for mutant in MUTANTS:
        names = [path.name for path, _ in places(mutant, package)]
        if len(names) != 1:
            found.append(f"{mutant.what}: {len(names)} times {names}: {mutant.old!r}")
            continue
        path, text = changed(mutant, package)
        try:
            compile(text, path.name, "exec")
        except SyntaxError as error:
            found.append(f"{mutant.what}: {error}")
    return found


def copied(to: Path) -> None:
    "What the tests need of the project."
    shutil.rmtree(to, ignore_errors=True)
    for name in ("gmvae_nb", "tests", "tools"):
        shutil.copytree(ROOT / name, to / name)
    (to / "nbs").mkdir()
    for name in ("settings.ini", "nbs/06_results.ipynb"):
        shutil.copy(ROOT / name, to / name)


# what nearly every test imports, and what costs more than most tests
LIBRARIES = (
    "anndata h5py hypothesis joblib numba numpy pandas pytest safetensors.torch scanpy "
    "scipy.sparse scipy.stats sklearn.cluster sklearn.mixture torch umap"
).split()


def test_here(copy: str, test: str, chosen: str, said: str) -> None:
    "Run the tests of a copy in this process, and leave it; what they say goes to a file."
    os.chdir(copy)
    own = {str(ROOT), *map(str, Path(__file__).parents)}
    sys.path[:] = [copy, *(path for path in sys.path if path not in own)]
    os.environ["PYTHONPATH"] = copy
    with open(said, "wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    import pytest

    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", test, "-k", chosen])
    sys.stdout.flush()
    os._exit(int(code))


def serve() -> None:
    "Import the libraries once; then a copy of this process for each line of stdin."
    import importlib

    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.alarm(600)
            test_here(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def main(words: list[str]) -> int:
    "The number of mutants that no test noticed, and of files whose tests fail without one."
    chosen = [m for m in MUTANTS if not words or any(word in m.what for word in words)]
    command = [sys.executable, __file__, "--serve"]
    # as `import gmvae_nb` asks it of torch, if it comes first
    env = {**os.environ, "KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    wrong = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, **pipes) as server,
    ):
        copy, said = Path(folder) / "copy", Path(folder) / "said.txt"

        def tried(what: str, test: str, those: str, wanted: int) -> bool:
            "Whether the tests end with this code."
            asked = json.dumps([str(copy), test, those, str(said)])
            print(asked, file=server.stdin, flush=True)
            code = int(server.stdout.readline())
            word = {0: "passed", 1: "caught"}[wanted] if code == wanted else "SURVIVED"
            last = said.read_text(encoding="utf-8").strip().split("\n")[-1]
            print(f"{word:9} {what:45} {last[:60]}", flush=True)
            return code == wanted

        copied(copy)
        for test in sorted({m.test for m in chosen}):
            those = " or ".join(m.chosen for m in chosen if m.test == test)
            wrong += not tried(f"{test} as it is", test, those, 0)
        for mutant in chosen:
            copied(copy)
            path, text = changed(mutant, copy / "gmvae_nb")
            path.write_text(text, encoding="utf-8")
            wrong += not tried(mutant.what, mutant.test, mutant.chosen, 1)
        server.stdin.close()
    print(f"{wrong} survived")
    return wrong


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        found = misfits()
        print(*found, sep="\n", end="\n" * bool(found))
        sys.exit(bool(found))
    if sys.argv[1:] == ["--serve"]:
        sys.exit(serve())
    sys.exit(bool(main(sys.argv[1:])))
