"""Train steps on histories of 1k to 64k items, always the same number of tokens a step."""
import dataclasses

from experiments.bench.training import Forms, TrainStep
from experiments.logs import equal_histories
from pallas_kernels.bench.clock import median_seconds
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.examples import valid_examples

TOKENS = 65_536
LENGTHS = 1024, 4096, 16_384, 65_536
ITEMS = 7_111  # KuaiRand-Pure's


def measure_long(config: RunConfig, repeats: int) -> list[dict]:
    """For 1 and 2 layers and each length: {'layers', 'length', 'plain', 'ours': figures}; one target a history."""
    rows = []
    for layers in (1, 2):
        model = dataclasses.replace(config.model, num_layers=layers)
        data = dataclasses.replace(config.data, tokens_per_row=TOKENS)
        forms = Forms.of(dataclasses.replace(config, model=model), ITEMS)
        steps = {}
        for length in LENGTHS:
            histories = TOKENS // length
            train = dataclasses.replace(config.train, targets_per_step=histories)
            settings = RunConfig(config.dataset, model, data, train)
            examples = valid_examples(equal_histories(length, 4 * histories, ITEMS))
            steps[length, 'plain'] = TrainStep(forms.plain, forms.params, settings, examples)
            steps[length, 'ours'] = TrainStep(forms.ours, forms.params, settings, examples)
        seconds = median_seconds(steps, repeats)
        for length in LENGTHS:
            rows.append({
                'layers': layers, 'length': length,
                **{form: steps[length, form].figures(seconds[length, form]) for form in ('plain', 'ours')},
            })
    return rows
