"""Write a page that shows a run or a study, whole in itself.

    ssd4rec report --workdir=RUN [--output=FILE.html] [--data_dir=LOG]
    ssd4rec report --study=DIR [--output=FILE.html]

The page is one HTML file without anything outside it, for phones and desktops, light and dark. That of a run has its
settings, curves, metrics beside baselines with intervals, cost, ten users with what is recommended to them, and items
that are near each other. Items have titles where the folder of the log has MovieLens' u.item, movies.dat or movies.csv.
"""
from pathlib import Path

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.dataset_flags import DATA_DIR
from ssd4rec_jax.commands.output_flag import OUTPUT
from ssd4rec_jax.commands.study_flags import STUDY
from ssd4rec_jax.commands.workdir_flag import WORKDIR, required_workdir
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.report.run_report import write_run_report
from ssd4rec_jax.report.study_page import write_study_report
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.show.output import write_stdout
from ssd4rec_jax.study.folder import StudyFolder


def main() -> int:
    if bool(WORKDIR.value) == bool(STUDY.value):
        raise ConfigError('give either --workdir, the folder of a training run, or --study, the folder of a study')
    output, log = (Path(flag.value) if flag.value else None for flag in (OUTPUT, DATA_DIR))
    if output and not output.absolute().parent.is_dir():  # before it takes time
        raise ConfigError(f'--output={output} cannot be written: there is no folder {output.parent}')
    if output and output.is_dir():
        raise ConfigError(f'--output={output} is a folder: name a file')
    if log and not log.exists():
        raise ConfigError(f'--data_dir={log} does not exist')
    enable_compilation_cache()
    if STUDY.value:
        written = write_study_report(StudyFolder(Path(STUDY.value)), output)
    else:
        written = write_run_report(RunFolder(required_workdir()), output, log=log)
    write_stdout(f'{written}\n')
    return 0


if __name__ == '__main__':
    run(main)
