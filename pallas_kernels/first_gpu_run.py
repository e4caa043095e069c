"""What to run when a Hopper GPU is at hand, the most valuable first. It sets nothing by itself.

    python -m pallas_kernels.first_gpu_run --out=DIR [--minutes=12] [--stages=device,agreement]

Each stage is a process of its own with a limit below 10 minutes, so that one that crashes or hangs ends no other. All
of them fit 25 minutes, and the first four 12. When --minutes are over, what is left is left out:

device      versions, the driver and what the chip can do, measured
around      the kernels around the scan, compiled, against their definitions, and their times beside XLA's
agreement_fused   pallas_gpu_fused, compiled, against the float32 reference over shapes and directions, three calls each
step_pallas_gpu_fused   KuaiRand's train and evaluation steps (python -m experiments.benchmark) with all kernels
step_pallas_gpu   the same with those that an H200 has found right
epoch       one epoch of the default train (python -m experiments.train)
agreement   as agreement_fused, for pallas_gpu
sanitizer   where pallas_gpu disagrees, the smallest failing shape under compute-sanitizer
bench       ssd_scan beside its peers (python -m pallas_kernels.bench_ssd)
bench_fused   where pallas_gpu_fused agrees, its times
step_xla    the steps without kernels

The steps and the epoch need a checkout. DIR gets first_gpu_run.json, written anew after each stage, page.txt, and what
each stage printed. The exit code is 1 where a stage failed or a shape disagrees.
"""
import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pallas_kernels.bench import agreement, around
from pallas_kernels.bench.ceilings import Ceilings
from pallas_kernels.bench.chip import chip_name
from pallas_kernels.ssd.workloads import Workload

IMPLEMENTATION = 'pallas_gpu'
FUSED = 'pallas_gpu_fused'
LONGEST = 25 * 60


class Stage(NamedTuple):
    """A command, its limit in seconds, and whether it runs, which what was found before decides.

    output: the JSON file that the command leaves in the folder; where it is None, the last line that it prints is JSON.
    """

    name: str
    command: list[str]
    seconds: int
    output: str | None = None
    needed: Callable[[dict[str, Any]], bool] = lambda found: True


def stages(out: Path) -> list[Stage]:
    """The stages of the command, in order."""
    python = [sys.executable, '-m']
    me = [*python, 'pallas_kernels.first_gpu_run']

    def step(name: str) -> Stage:
        command = [
            *python, 'experiments.benchmark', '--preset=kuairand', '--set=model.dtype=bfloat16', '--repeats=3',
            f'--set=model.ssd_implementation={name}', f'--json={out / f"{name}.json"}',
        ]
        return Stage(f'step_{name}', command, 180, f'{name}.json')

    def bench(name: str, implementations: str, workloads: str, seconds: int) -> Stage:
        command = [
            *python, 'pallas_kernels.bench_ssd', f'--implementation={implementations}', f'--workload={workloads}',
            f'--json={out / f"{name}.json"}',
        ]
        return Stage(name, command, seconds, f'{name}.json')

    return [
        Stage('device', [*me, '--only=device'], 90),
        Stage('around', [*me, '--only=around'], 210),
        Stage('agreement_fused', [*me, '--only=agreement_fused'], 180),
        step(FUSED),
        step(IMPLEMENTATION),
        Stage('epoch', [*python, 'experiments.train', f'--workdir={out / "run"}', '--set=train.max_epochs=1'], 120,
              'run/result.json'),
        Stage('agreement', [*me, '--only=agreement'], 120),
        Stage(
            'sanitizer', ['compute-sanitizer', *me, '--only=smallest', f'--out={out}'], 60,
            needed=lambda found: bool(_smallest_failing(found)),
        ),
        bench('bench', f'{IMPLEMENTATION},xla', 'kuairand,mamba16k', 120),
        bench('bench_fused', FUSED, 'kuairand', 60)._replace(
            needed=lambda found: bool((fused := found.get('agreement_fused', {})).get('ok')) and _all_agree({'': fused})
        ),
        step('xla'),
    ]


def device() -> dict[str, Any]:
    """What runs here and what the chip can do."""
    first = jax.devices()[0]
    ceilings = Ceilings.measure(jax.numpy.bfloat16, 5)
    return {
        'chip': chip_name(), 'capability': str(getattr(first, 'compute_capability', 'unknown')),
        'jax': jax.__version__, 'runtime': first.client.platform_version, 'ceilings': ceilings._asdict(),
    }


def smallest(out: Path) -> dict[str, Any]:
    """The smallest failing shape of the stage agreement, run once more."""
    found = json.loads((out / 'first_gpu_run.json').read_text())
    case = _smallest_failing(found)
    if case is None:
        sys.exit('error: no shape disagreed in the stage agreement')
    return agreement.disagreement(Workload(*case['shape']), case['reverse'], IMPLEMENTATION)


def _smallest_failing(found: dict[str, Any]) -> dict[str, Any] | None:
    return found.get('agreement', {}).get('result', {}).get('smallest_failing')


def _all_agree(found: dict[str, Any]) -> bool:
    results = (record.get('result') or {} for record in found.values())
    return all(case['agrees'] for result in results for case in result.get('cases', ()))


def run_stage(stage: Stage, out: Path) -> dict[str, Any]:
    """Run one stage: {'ok', 'seconds', and 'result' or 'why'}. What it prints goes to a file of its name."""
    log = out / f'{stage.name}.log'
    started = time.monotonic()
    try:
        with log.open('w') as file:
            done = subprocess.run(stage.command, stdout=file, stderr=subprocess.STDOUT, timeout=stage.seconds)
        why = f'exit code {done.returncode}: {_last_line(log)}' if done.returncode else ''
    except subprocess.TimeoutExpired:
        why = f'it took longer than {stage.seconds} s'
    except FileNotFoundError:
        why = f'{stage.command[0]} is not installed'
    record: dict[str, Any] = {'ok': not why, 'seconds': round(time.monotonic() - started, 1)}
    if why:
        return record | {'why': why}
    try:
        return record | {'result': json.loads((out / stage.output).read_text() if stage.output else _last_line(log))}
    except (OSError, ValueError) as error:
        return record | {'ok': False, 'why': f'it left no result: {error}'}


def _last_line(log: Path) -> str:
    return next((line for line in reversed(log.read_text(errors='replace').splitlines()) if line.strip()), '')


def run_stages(chosen: Sequence[Stage], out: Path, seconds: float = LONGEST) -> dict[str, Any]:
    """Run the stages that are needed, and write the records and the page after each. Returns the records by name.

    seconds: when these are over, a stage is stopped and those after it are left out.
    """
    found: dict[str, Any] = {}
    end = time.monotonic() + seconds
    for stage in chosen:
        left = int(end - time.monotonic())
        if stage.needed(found) and left > 0:
            found[stage.name] = run_stage(stage._replace(seconds=min(stage.seconds, left)), out)
            _write(out / 'first_gpu_run.json', json.dumps(found, indent=1))
            _write(out / 'page.txt', page(found))
            print(page({stage.name: found[stage.name]}), end='', flush=True)
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_text(text)
    partial.replace(path)


def page(found: dict[str, Any]) -> str:
    """The records in words, a few lines for each stage."""
    lines = []
    for name, record in found.items():
        lines.append(f'{name}: {"done" if record["ok"] else "failed, " + record["why"]} ({record["seconds"]:.0f} s)')
        result = record.get('result') or {}
        if name == 'device' and result:
            c = result['ceilings']
            lines.append(
                f'    {result["chip"]}, compute capability {result["capability"]}, JAX {result["jax"]}: '
                f'{c["bytes"] / 1e9:,.0f} GB/s, {c["flops"] / 1e12:,.0f} TFLOP/s, {c["exps"] / 1e9:,.0f} G exp/s'
            )
        if 'cases' in result:
            bad = [case for case in result['cases'] if not case['agrees']]
            lines.append(f'    {len(result["cases"]) - len(bad)} of {len(result["cases"])} cases agree')
            for case in bad:
                what = case.get('name') or f'{case["shape"]}, reverse {case["reverse"]}'
                lines.append(f'    {what}: {case.get("errors") or case["error"]}')
            for case in result['cases']:
                if 'seconds' in case:
                    both = ', '.join(f'{form} {seconds * 1e3:.3f} ms' for form, seconds in case['seconds'].items())
                    lines.append(f'    {case["name"]}: {both}')
            if result.get('smallest_failing'):
                lines.append(f'    the smallest shape that fails: {result["smallest_failing"]}')
        for workload, peers in result.get('workloads', {}).items() if name.startswith('bench') else ():
            for peer, passes in peers.items():
                times = [f'{kind} {f["seconds"] * 1e3:.3f} ms' for kind, f in passes.items() if 'seconds' in f]
                lines.append(f'    {workload}, {peer}: {", ".join(times) or passes["unavailable"]}')
    return '\n'.join(lines) + '\n'


# What a stage's own process finds, given the folder for the records.
HERE: dict[str, Callable[[Path], dict[str, Any]]] = {
    'device': lambda out: device(), 'around': lambda out: around.compare(),
    'agreement': lambda out: agreement.compare(IMPLEMENTATION),
    'agreement_fused': lambda out: agreement.compare(FUSED), 'smallest': smallest,
}


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='the folder for the records, which is made')
    parser.add_argument('--stages', help='names of stages, comma-separated; all by default')
    parser.add_argument('--minutes', type=float, default=LONGEST / 60, help='when to stop; 25 by default')
    parser.add_argument('--only', choices=tuple(HERE), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.only:
        print(json.dumps(HERE[flags.only](flags.out)))
        return 0
    if flags.out is None:
        parser.error('--out=DIR names the folder for the records')
    everything = stages(flags.out)
    names = flags.stages.split(',') if flags.stages else [stage.name for stage in everything]
    if unknown := sorted(set(names) - {stage.name for stage in everything}):
        sys.exit(f'error: --stages={",".join(unknown)} is unknown: there are {", ".join(s.name for s in everything)}')
    # Asked in a process of its own: one that had opened the GPU would keep most of its memory from the stages.
    asked = subprocess.run(
        [sys.executable, '-c', 'import jax; print(jax.default_backend())'], capture_output=True, text=True
    ).stdout.strip()
    if asked != 'gpu':
        sys.exit(f'error: first_gpu_run needs a GPU, and JAX {jax.__version__} finds {asked or "no device"} here')
    flags.out.mkdir(parents=True, exist_ok=True)
    chosen = [stage for stage in everything if stage.name in names]
    found = run_stages(chosen, flags.out, 60 * flags.minutes)
    if left_out := [stage.name for stage in chosen if stage.name not in found and stage.needed(found)]:
        print(f'left out, because {flags.minutes:g} minutes were over: {", ".join(left_out)}')
    return 0 if all(record['ok'] for record in found.values()) and _all_agree(found) else 1


if __name__ == '__main__':
    sys.exit(main())
