"""Train steps on histories of 1k to 64k items, always with the same number of tokens per step."""
import dataclasses

from experiments.bench.training import Forms, TrainStep
from experiments.logs import equal_histories
from pallas_kernels.bench.clock import median_seconds
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.examples import valid_examples

TOKENS = 65_536
LENGTHS = 1024, 4096, 16_384, 65_536
ITEMS = 7_111  # as in KuaiRand-Pure


def measure_long(config: RunConfig, repeats: int) -> list[dict]:
    """The figures of both forms for 1 and 2 layers and each length, with one target per history.

    Each entry of the list has the keys 'layers', 'length', 'plain' and 'ours'.
    """
    rows = []
    for layers in (1, 2):
        model = dataclasses.replace(config.model, num_layers=layers)
        data = dataclasses.replace(config.data, tokens_per_row=TOKENS)
        forms = Forms.of(dataclasses.replace(config, model=model), ITEMS)
        steps: dict[str, TrainStep] = {}
        for length in LENGTHS:
            histories = TOKENS // length
            train = dataclasses.replace(config.train, targets_per_step=histories)
            settings = RunConfig(config.dataset, model, data, train)
            examples = valid_examples(equal_histories(length, 4 * histories, ITEMS))
            steps[f'plain {length}'] = TrainStep(forms.plain, forms.params, settings, examples)
            steps[f'ours {length}'] = TrainStep(forms.ours, forms.params, settings, examples)
        seconds = median_seconds(dict(steps), repeats)
        for length in LENGTHS:
            rows.append({
                'layers': layers, 'length': length,
                **{
                    form: steps[f'{form} {length}'].figures(seconds[f'{form} {length}']) for form in ('plain', 'ours')
                },
            })
    return rows
