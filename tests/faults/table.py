"""The table of docs/reliability.md: which harm is done, by which tests, and what has to come of it."""

from dataclasses import dataclass

STAGES, PUBLISHED = "tests/stages/run", "tests/exchange/published"


@dataclass(frozen=True)
class Row:
    """A kind of harm.

    Attributes:
        harm: What happens.
        how: How the tests do it.
        outcome: What has to come of it.
        tests: ``FILE::FUNCTION``, where a function may end in ``*``; files without a folder are in tests/faults.
    """

    harm: str
    how: str
    outcome: str
    tests: tuple[str, ...]


ROWS = (
    Row(
        "Killed while it saves",
        "SIGKILL before and after every call that changes the folder, and at bytes of the file; `TMPDIR` on the same "
        "and on another file system",
        "`last.ckpt` and `previous.ckpt` are whole; a run that goes on ends in the same weights, bit for bit",
        ("test_kills.py::test_a_kill_at_any_moment*", "test_kills.py::test_a_run_that_is_killed*"),
    ),
    Row(
        "Killed while it writes results",
        "SIGKILL at calls of each command, and between moves into a folder",
        "the same command makes what it would have made; no mixture, nothing hidden stays",
        (
            "test_kills.py::test_a_command_that_is_killed*",
            "test_leftovers.py::test_a_kill_between*",
            "test_leftovers.py::test_what_was_half_written*",
            "test_leftovers.py::test_what_another*",
            "test_leftovers.py::test_hidden*",
            "test_locks.py::test_a_requeued_job_finishes*",
            "test_checkpoints.py::test_what_a_kill*",
        ),
    ),
    Row(
        "Checkpoint cut short",
        "at lengths up to the whole",
        "refused by name",
        ("test_checkpoints.py::test_no_part*",),
    ),
    Row(
        "Checkpoint with a flipped bit",
        "bits over the whole file, with and without our checksum",
        "refused by name, or read as what it was",
        ("test_checkpoints.py::test_no_flipped_bit*",),
    ),
    Row(
        "Checkpoint missing, replaced, misshaped",
        "gone, a dangling link, a folder, empty, HTML, a list, other shapes; the best artifact alone is left",
        "the run stops, removes nothing, names `previous.ckpt` if that is good, and goes on from it when asked to",
        (
            "test_checkpoints.py::test_a_damaged_checkpoint*",
            "test_checkpoints.py::test_weights_of_another_shape*",
            "test_checkpoints.py::test_the_checkpoint_before*",
            "test_checkpoints.py::test_without_any*",
            "test_checkpoints.py::test_a_best_artifact*",
            "test_checkpoints.py::test_one_earlier*",
            "test_checkpoints.py::test_a_run_stopped_before*",
        ),
    ),
    Row(
        "Records of a run damaged",
        "`start.json`, `finished.json`, `config.yaml`: empty, HTML, a list, half, nested",
        "one sentence that names the file",
        ("test_checkpoints.py::test_a_damaged_record*", "test_checkpoints.py::test_a_job_gets_past*"),
    ),
    Row(
        "Artifact damaged or edited",
        "a flipped byte, an endless header, fields that are missing, malformed or impossible, another parent, a save "
        "that fails",
        "refused by name; the artifact before stays",
        (
            "tests/models/test_artifact.py::test_one_flipped*",
            "tests/models/test_artifact.py::test_changed_parent*",
            "tests/models/test_artifact.py::test_edited*",
            "tests/models/test_artifact.py::test_a_header_of*",
            "tests/models/test_artifact.py::test_malformed*",
            "tests/models/test_artifact.py::test_description*",
            "tests/models/test_artifact.py::test_failure*",
        ),
    ),
    Row(
        "NaN",
        "in a batch, in gradients, in weights that are saved",
        "the step leaves no trace, or the run stops with its last checkpoint good",
        (
            "test_checkpoints.py::test_weights_that_are_not_finite*",
            f"{STAGES}/test_run.py::test_steps_that_are_not_finite*",
            "tests/stages/autoencoder/test_safe_steps.py::test_what_is_not_finite*",
            "tests/stages/autoencoder/test_train.py::test_a_batch_that_is_not_finite*",
        ),
    ),
    Row(
        "Disk full",
        "a file system without room, and a quota, for each command and for a training",
        "one sentence that names the place; nothing half-written; the last checkpoint stays",
        ("test_full_disk.py::*", "test_checkpoints.py::test_a_full_disk*"),
    ),
    Row(
        "SIGTERM, Ctrl-C, SIGUSR2",
        "to stages while they read, check, open their folder, train, validate and finish; to each command while it "
        "writes; to a demo and a study",
        "one sentence; locks given up; nothing half-written; a training saves, and ends as one that was not stopped",
        (
            "test_signals.py::*",
            "test_leftovers.py::test_a_terminated*",
            f"{STAGES}/test_stopping.py::*",
            f"{STAGES}/test_loading.py::test_a_process_that_loads*",
        ),
    ),
    Row(
        "Loading process killed or stopped",
        "SIGKILL, SIGSTOP, a file that takes for ever",
        "the training ends with a sentence that names the file",
        (f"{STAGES}/test_loading.py::test_a_process_that_stands*", f"{STAGES}/test_loading.py::test_a_training*"),
    ),
    Row(
        "Process of `--jobs` killed",
        "SIGKILL of one, and of the command",
        "the case that it dies of alone is lost; no process outlives the command",
        ("test_workers.py::*", "tests/synthesis/scan/test_cohort.py::test_a_process_that_is_killed*"),
    ),
    Row(
        "Two at once",
        "two processes, jobs, requeues, steps and users for one folder; a holder that died or stood still",
        "the second is refused and told who is there; the dead keep nobody out",
        ("test_locks.py::*",),
    ),
    Row(
        "Code in checkpoints",
        "pickles that run a command, in four places and four formats",
        "refused; nothing runs",
        ("test_hostile_files.py::test_no_code_in_a_checkpoint*",),
    ),
    Row(
        "Checkpoints that unpack to more",
        "compressed parts, lists in themselves, 10¹⁸ elements of one value",
        "refused, or read within the memory of the file",
        ("test_hostile_files.py::test_what_a_checkpoint_claims*", "test_hostile_files.py::test_a_packed*"),
    ),
    Row(
        "Code in published files",
        "pickles in seven places, other protocols, instructions by hand, two tables of parts, cut and changed files",
        "refused; nothing runs or is made",
        (f"{PUBLISHED}/test_malicious.py::*", f"{PUBLISHED}/test_reading.py::test_*re_refused*",
         f"{PUBLISHED}/test_reading.py::test_any_changed*"),
    ),
    Row(
        "Code in weights, caches, arrays",
        "pickles as feature networks, perceptual weights, cached scans and latents, weights of artifacts, and as scans",
        "refused or made again; nothing runs",
        (
            "test_hostile_files.py::test_no_code_in_weights*",
            "test_hostile_files.py::test_no_code_in_a_cache*",
            "test_hostile_files.py::test_weights_of_an_artifact*",
            "test_hostile_files.py::test_no_pickle_of_numpy*",
        ),
    ),
    Row(
        "Classes in artifacts and texts",
        "`_target_`, dotted names and tags of YAML in artifacts, run folders, records, lists, plans and cluster files",
        "refused before anything is imported, or taken for text",
        (
            "test_hostile_files.py::test_an_artifact_names*",
            "test_hostile_files.py::test_no_tag*",
            "test_hostile_files.py::test_no_target*",
            "test_hostile_files.py::test_a_stored_config*",
        ),
    ),
    Row(
        "Names that lead elsewhere",
        "`..`, absolute and long names of cases, runs and parents",
        "nothing is written outside of the folder of results",
        (
            "test_hostile_names.py::test_no_name*",
            "test_hostile_names.py::test_no_parent*",
            "test_hostile_names.py::test_what_others_name*",
        ),
    ),
    Row(
        "Links in folders of results",
        "in the place of a file, of a folder, of leftovers, of a run",
        "replaced or refused; what they lead to stays as it is",
        (
            "test_hostile_names.py::test_a_link*",
            "test_hostile_names.py::test_a_folder_of_others*",
            "test_hostile_names.py::test_a_run_whose*",
        ),
    ),
    Row(
        "No network",
        "each command, and a training, with every connection and look-up refused",
        "nothing is reached for",
        ("test_network.py::*",),
    ),
    Row(
        "Malformed and unusual NIfTI files",
        "each field of NIfTI-1 and -2, extensions, compression, types of values, labels, bombs",
        "refused with the field or reason named, or read as NiBabel reads it; a bomb takes little time and memory",
        ("test_malformed_nifti.py::*",),
    ),
    Row(
        "Files changed at random",
        "scans, plans, records, lists and descriptions of artifacts, made up or changed for a budget of examples each, "
        "longer by `make fuzz`",
        "read as they are meant, or refused in one sentence",
        ("test_fuzzing.py::*",),
    ),
    Row(
        "Texts without bounds",
        "nesting, aliases, digits, long fields, a million rows, pipes",
        "one sentence, in time and memory of the file's size",
        ("test_texts.py::*",),
    ),
)  # fmt: skip
