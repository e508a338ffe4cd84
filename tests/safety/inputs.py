"""Command lines to try, made by enumeration: every option, group, setting, flag and subcommand beside odd values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hydra._internal.utils import get_args_parser

from harness import catalogue, groups
from harness.chosen import settings_of
from harness.study import commands
from harness.study.grid import study_names

SEED = 14
LONG = "9" * 5000
VALUES = [
    *("", "null", "true", "false", "yes", "0", "1", "-1", "2", "1.5", "-0.0", "1e-400", "1e400", "nan", "inf"),
    *(str(2**62), str(10**30), LONG, "0x10", "1_000", "1e3", "[]", "[1]", "[a,b]", "[[1]]", "{}", "{a:1}", "{a:{b:1}}"),
    *("x", "x" * 300, "é模型", "😀", "' '", "'two words'", "two words", " 1 ", "'1'", '"quoted"', "a'b", "a\\b", "a=b"),
    *(
        "${seed}",
        "${nope}",
        "${oc.env:NOPE}",
        "${oc.env:HOME}",
        "${hydra:job.num}",
        "${now:%Y}",
        "${",
        "${a:b}",
        "$HOME",
    ),
    *(
        "???",
        "~",
        "!",
        "a;b",
        "[",
        "(",
        "{",
        "#x",
        "%",
        "..",
        "../x",
        "/dev/null",
        "/proc/nowhere",
        "-",
        "--help",
    ),
    *("0,1", "a,b", "0,", ",", "range(3)", "range(0,3,0)", "range(3,0,0.5)", "range(0.3,0,-0.1)", "range(0,1e18)"),
    *("range(3,0)", "range(a,b)", "interval(0,1)", "choice()", "choice(1,2)", "glob(*)", "glob(zzz*)", "shuffle(0,1)"),
    *("sort(2,1)", "tag(a,choice(0,1))", "int(1.5)", "str(1)", "json_str('x')", "float(range(2))", "nosuch(1)"),
]
"""What is typed behind an `=`."""
HUGE = (str(2**62), "1e3", "1_000")
"""Values that may be taken and would run for long."""
PREFIXES = ("+", "++", "~", " ", "-", "seed.", "x.")
STUDY = ["study=harness_embedded", "model=embedded-llama", "method=none"]
HYDRA = [
    *(
        "run.dir",
        "sweep.dir",
        "sweep.subdir",
        "output_subdir",
        "mode",
        "verbose",
        "job.chdir",
        "job.num",
        "job.env_set.A",
    ),
    *(
        "sweeper.params",
        "sweeper.params.seed",
        "callbacks.x._target_",
        "searchpath",
        "launcher.foo",
        "launcher._target_",
    ),
    *(
        "launcher.n_jobs",
        "runtime.cwd",
        "job_logging.root.level",
        "hydra_logging",
        "overrides.task",
        "x",
        "help.template",
    ),
]


@dataclass(frozen=True)
class Input:
    """What is typed. `dry`: it may be right, and then runs for too long to be tried whole."""

    arguments: tuple[str, ...]
    dry: bool = False

    def __str__(self) -> str:
        return " ".join(argument if len(argument) < 100 else f"{argument[:80]}…" for argument in self.arguments)


def inputs() -> list[Input]:
    """All of them, each once, in an order that is mixed and always the same: any number from its start is a sample."""
    draw = random.Random(SEED)
    single = [*_options(), *_settings(draw), *_forms(), *_hydra()]
    made = [_run(draw, text) for text in single]
    made += [_run(draw, *draw.sample(single, 2)) for _ in range(300)]
    made += [*_flags(), *_commands(draw, single)]
    made = list(dict.fromkeys(made))
    draw.shuffle(made)
    return made


def _run(draw: random.Random, *texts: str) -> Input:
    """A cheap run with these overrides; half of them as a sweep."""
    sweep = ("-m",) if draw.random() < 0.5 else ()
    return Input((*sweep, *texts), any(value in text for text in texts for value in HUGE))


def _options() -> Iterator[str]:
    """Every option beside every value; every group beside its choices, and names that are nearly theirs."""
    for option in (*groups.options(), "cluster"):
        yield from (f"{option}={value}" for value in VALUES)
    for group in groups.GROUPS:
        for choice in groups.choices(group):
            yield from (
                f"{group}={choice}",
                f"{group}={choice[:-1]}",
                f"{group}={choice.upper()}",
                f"{group}=[{choice}]",
            )
        yield f"{group}={','.join(groups.choices(group))}"


def _settings(draw: random.Random) -> Iterator[str]:
    """Every setting of every choice beside some of the values; of files with the same settings three."""
    for group in groups.GROUPS:
        alike = group in groups.FILE_GROUPS and group != "tracker"
        for choice in draw.sample(groups.choices(group), 3) if alike else groups.choices(group):
            for key, default in _leaves(group, choice):
                for value in [default, *draw.sample(VALUES, 4)]:
                    yield f"{group}={choice} {key}={value}"
                yield f"{key}={draw.choice(VALUES)}"
                yield f"{group}={choice} {key[:-1]}={default}"
            for chosen, key in _inner_leaves(group, choice):
                yield f"{group}={choice} {chosen} {key}={draw.choice(VALUES)}"


def _leaves(group: str, choice: str) -> list[tuple[str, Any]]:
    if group == "evaluation":
        return [(f"{group}.{choice}.{key}", "1") for key in settings_of(f"{group}.{choice}", [f"{group}={choice}"])]
    known = groups.COMPONENT_GROUPS
    settings = catalogue.defaults(group, choice) if group in known and choice in catalogue.names(group) else None
    keys = settings or settings_of(group, [f"{group}={choice}"])
    return [(f"{group}.{key}", _typed(settings[key]) if settings else "1") for key in keys if key != "name"]


def _inner_leaves(group: str, choice: str) -> Iterator[tuple[str, str]]:
    """Each component within this one, and each setting that it has then."""
    within = catalogue.components(group, choice) if group in groups.COMPONENT_GROUPS and choice != "none" else {}
    for field, kind in within.items():
        for name in catalogue.names(kind):
            for key in catalogue.defaults(kind, name):
                yield f"{group}.{field}={name}", f"{group}.{field}.{key}"


def _typed(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["name"])
    return "null" if value is None else str(value).replace(" ", "").lower()


def _forms() -> Iterator[str]:
    """Options with something before, behind or around their name; without a value; twice; packages."""
    for option in (*groups.options(), "cluster", "nothing"):
        yield from (f"{prefix}{option}=1" for prefix in PREFIXES)
        yield from (
            option,
            f"~{option}",
            f"{option}@x=1",
            f"{option}/x=1",
            f"{option}.=1",
            f"{option} =1",
            f"{option}:1",
        )
        yield from (
            f"{option}=1 {option}=2",
            f"{option[:-1]}=1",
            f"{option.upper()}=1",
            f"{option}.x.y=1",
            f"=1{option}",
        )


def _hydra() -> Iterator[str]:
    for name in HYDRA:
        yield from (f"{prefix}hydra.{name}={value}" for prefix in ("", "+", "++") for value in ("x", "true", "{a:1}"))
        yield f"~hydra.{name}"
    yield from ("hydra=x", "~hydra", "+hydra=x", "hydra={}", "hydra/launcher=joblib", "hydra/job_logging=default")
    yield from (f"cluster={name} hydra.launcher.foo=1" for name in groups.choices("cluster"))
    yield from (f"cluster.{key}={value}" for key in ("jobs", "x") for value in VALUES[:12])


def _flags() -> Iterator[Input]:
    """Every flag of Hydra, alone, with a value, abbreviated, and with an override."""
    flags = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    for flag in [*flags, "--nope", "-x", "--"]:
        if flag not in ("-m", "--multirun", "-r", "--run", "--version"):
            yield from (Input((flag,)), Input((f"{flag}=x",)), Input((flag, "x")), Input((flag, "seed=1")))
            yield from (Input((flag, "methodd=1")), Input((flag, "-m")), Input((flag[:-2], "study=harness_embedded")))
    yield from (Input((f"--cfg={what}", *more)) for what in ("job", "hydra", "all") for more in ((), ("-p", "nope")))


def _commands(draw: random.Random, single: list[str]) -> Iterator[Input]:
    """Every subcommand beside studies, scales and odd overrides; a study run; names that are nearly commands."""
    for command in [*commands.COMMANDS, "allocation", "", "nope"]:
        named = (command,)
        yield from (
            Input(named),
            Input((*named, "x")),
            Input((*named, "--cfg=job")),
            Input((*named, "study=nope", "-m")),
        )
        yield from (
            Input((f"{command}s", *STUDY)),
            Input((*named, *STUDY, *STUDY[:1])),
            Input((*named, *STUDY, "scale=x")),
        )
        yield from (Input((*named, *STUDY, *draw.choice(single).split(" "))) for _ in range(25))
    yield from (Input((*STUDY, *draw.choice(single).split(" "))) for _ in range(60))
    for study in study_names():
        yield from (Input(("plan", f"study={study}", f"scale={scale}")) for scale in (*groups.SCALES, ""))
        yield Input(("status", f"study={study[:-1]}"))
