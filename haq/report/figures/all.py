"""All figures of a run, and writing them as `plots/*.png`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from haq.edges.documents import write_bytes
from haq.report.figures.bits import bits_data, plot_bits
from haq.report.figures.costs import costs_data, metrics_shown, plot_costs
from haq.report.figures.heatmap import plot_sensitivity, sensitivity_data
from haq.report.figures.marginal import marginal_data, plot_marginal
from haq.report.figures.style import png
from haq.report.figures.tradeoff import prediction_data, tradeoff_data
from haq.report.figures.tradeoff_plot import plot_tradeoff
from haq.results.read import Run, load_run, load_sensitivities
from haq.values.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(run: Run) -> dict[str, Figure]:
    """Name -> figure, of all that the run has numbers for: `bits`, `costs_<metric>`, `sensitivity`, `accuracy`, ..."""
    result, policy = run.result, run.result.answer.policy
    found = {"accuracy": plot_tradeoff(tradeoff_data(run)), "bits": plot_bits(bits_data(policy))}
    for metric in metrics_shown(result):
        found[f"costs_{metric}"] = plot_costs(costs_data(result.breakdown, metric))
    if run.sensitivities:
        found["sensitivity"] = plot_sensitivity(sensitivity_data(run.sensitivities, policy))
        found["prediction"] = plot_tradeoff(prediction_data(run))
    marginal = marginal_data(result.marginal, result.objective)
    if marginal:
        found["marginal"] = plot_marginal(marginal)
    return found


def write_plots(run_dir: str | Path) -> list[Path]:
    """Draw everything into `run_dir/plots/*.png` and return the files.

    Raises:
        InputError: the folder is not a finished run.
    """
    images = {name: png(figure) for name, figure in figures(load_run(run_dir)).items()}
    folder = Path(run_dir) / "plots"
    for name, image in images.items():
        write_bytes(folder / f"{name}.png", image)
    return [folder / f"{name}.png" for name in images]


def write_heat_map(table: Path, image: Path) -> None:
    """Draw a `sensitivity.csv` that belongs to no run as a PNG image.

    Raises:
        InputError: the table is not there or damaged, or `image` cannot be written.
    """
    sensitivities = load_sensitivities(table)
    if not sensitivities:
        raise InputError(f"{table}: no sensitivities in it; write it with haq sensitivity EXPERIMENT")
    write_bytes(image, png(plot_sensitivity(sensitivity_data(sensitivities))))
