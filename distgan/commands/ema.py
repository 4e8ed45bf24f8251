"""`distgan ema RUN`: averages of G's weights of any width, after the training; one as a file, or several evaluated."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.commands.datasets import data_config, trained_on
from distgan.commands.ema_curve import Curve, Point, check_matplotlib, write_curve
from distgan.commands.ema_options import EMAOptions, check_options
from distgan.commands.evaluate import BALANCED, readable_errors
from distgan.commands.evaluate_options import Options
from distgan.commands.image_sets import open_images
from distgan.commands.run import run_distributed
from distgan.config.parser import Parser, take_import
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.evaluator import Evaluator
    from distgan.generators.post_hoc_ema import Average, PostHocEMA

DESCRIPTION = (
    "`distgan ema RUN --width 0.1 --out FILE.safetensors` puts an average of G's weights together from the snapshots "
    "of a run with `ema.power_widths`. `distgan ema RUN --widths 0.05,0.1,0.15` evaluates several, on all processes, "
    "and writes the curve; it takes the options of `distgan evaluate`."
)
RUN = "A run folder, with snapshots in its folder ema."
NOT_OF_EMA: set[str | int] = {"out", "generated", "train_extractor", "train_images", "by", "bins", "balanced"}
"""Options of `distgan evaluate` that are not of this command, or added by hand."""


def write_one(run: Path, options: EMAOptions) -> None:
    """Put the average of --width together and write it. Raises UsageError."""
    from distgan.generators.post_hoc_ema import PostHocEMA

    assert options.width is not None, "checked"
    assert options.out_file is not None, "checked"
    ema = PostHocEMA(run, options.at, batchnorm_images=options.batchnorm_images)
    average = ema.average(options.width)
    ema.save(options.out_file, average)
    print(f"{options.out_file}: {average} of {len(ema.snapshots)} snapshots; at {ema.images:,} images")


def evaluate_several(run: Path, ema_options: EMAOptions, options: Options) -> None:
    """Evaluate the averages of --widths, and write the curve and the best average. Raises UsageError and RunError."""
    from distgan.config.keys import Config
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.evaluator import Evaluator
    from distgan.evaluation.originals import check_same_kind
    from distgan.generators.post_hoc_ema import PostHocEMA

    widths = ema_options.several
    check_matplotlib()
    processes = Distributed(Config())
    count = ema_options.batchnorm_images
    ema = processes.run_on_all(lambda: PostHocEMA(run, ema_options.at, batchnorm_images=count, device=processes.device))
    for width in widths:
        ema.fit(width)  # one that cannot be had is refused before anything is computed
    address = options.data or trained_on(run)
    keys = data_config(run)
    real = open_images(address, processes, options.cache, "data", keys)
    check_same_kind(ema.G.spec, ema.G.classes, *real)
    evaluator = Evaluator(processes, real.dataset, options.settings(), path=real.address)
    name = f"curve-{options.card_name(ema.images, evaluator.extractor.name, real.dataset.digest)}"
    out = Path(ema_options.curve) if ema_options.curve else run / "ema" / name
    vae = options.vae or keys.get("vae")
    points = []
    with readable_errors(processes):
        for width in widths:
            average = processes.run_on_all(lambda width=width: ema.average(width))
            point = evaluate_one(processes, evaluator, ema, average, vae, options.truncation_psi)
            points.append(point)
            if processes.is_main_process:
                print(point.card.line(), flush=True)
        curve = Curve(str(run), ema.images, count, points)
        processes.run_on_main(lambda: finish(ema, curve, out, ema_options.out_file))
    processes.shutdown()


def evaluate_one(
    processes: "Distributed", evaluator: "Evaluator", ema: "PostHocEMA", average: "Average", vae: str | None, psi: float
) -> Point:
    """The card of an average, which is loaded as from its file; called on all processes."""
    from distgan.generators.loading import load_generator

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ema.safetensors"
        ema.save(file, average)
        G = processes.run_on_all(lambda: load_generator(file, processes.device, vae=vae, truncation_psi=psi))
    about = {"images": ema.images, "ema": True, "ema_width": average.width, "truncation_psi": psi}
    return Point(average.width, average.residual, evaluator(G, z_dim=G.z_dim, spec=G.spec, **about))


def finish(ema: "PostHocEMA", curve: Curve, out: Path, best_out: Path | None) -> None:
    """Write the curve, and the best average if it is wanted; called on the main process. Raises UsageError."""
    figure = write_curve(curve, out)
    print(f"{out} and {figure}: {len(curve.points)} widths at {curve.images:,} images")
    print(curve.line())
    if best_out is not None:
        average = ema.average(curve.best.width)
        ema.save(best_out, average)
        print(f"{best_out}: {average}", flush=True)


def command(argv: list[str]) -> None:
    """Read the command line, and put together one average, or evaluate several."""
    parser = Parser(prog="distgan ema", description=DESCRIPTION)
    parser.add_argument("run", help=RUN)
    parser.add_class_arguments(EMAOptions, as_group=False)
    parser.add_class_arguments(Options, as_group=False, skip=NOT_OF_EMA)
    parser.add_argument("--balanced", action="store_true", help=BALANCED)
    parser.add_import("Your module, or modules, that add the model.")
    namespace = parser.parse_args(argv)
    run = Path(namespace.pop("run"))
    modules = take_import(namespace)
    values = namespace.as_dict()
    ema_options = EMAOptions(**{name: values.pop(name) for name in EMAOptions.__dataclass_fields__})
    check_options(ema_options, parser.given - {""})
    import_user_modules(modules)
    if ema_options.width is not None:
        write_one(run, ema_options)
        return
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.training.stop import exit_with_launcher

    exit_with_launcher()
    evaluate_several(run, ema_options, Options(**values))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for an evaluation that failed."""
    return run_distributed(command, argv)
