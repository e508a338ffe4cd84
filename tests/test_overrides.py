"""What is typed, before anything is composed: the points of a sweep, and what cannot be meant."""

from __future__ import annotations

import pytest

from harness import groups
from harness.overrides import last_of, plugins_in, points, read
from harness.runtime.errors import UserError


@pytest.fixture(autouse=True)
def _registered() -> None:
    groups.register()


def values(text: str) -> list[str]:
    return [point[0].partition("=")[2] for point in points([text])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sparsity=range(0.8,0.5,-0.1)", "0.8 0.7 0.6"),
        ("sparsity=range(0.1,0.8,0.1)", "0.1 0.2 0.3 0.4 0.5 0.6 0.7"),
        ("sparsity=range(0,0.3,0.05)", "0.0 0.05 0.1 0.15 0.2 0.25"),
        ("sparsity=range(0.55,0.35,-0.05)", "0.55 0.5 0.45 0.4"),
        ("seed=range(3)", "0 1 2"),
        ("seed=range(7,1,-3)", "7 4"),
        ("seed=sort(range(1,4),reverse=true)", "3 2 1"),
        ("seed=int(range(0.5,3.5))", "0 1 2"),
        ("seed=tag(mine,range(2))", "0 1"),
        ("seed=choice(4,2)", "4 2"),
        ("seed=sort(4,2)", "2 4"),
        ("seed=str(1,2)", "1 2"),
        ("method=glob([wa*,sparse*],exclude=*llm)", "sparsegpt wanda"),
        ("records='a b','c,d'", "'a b' 'c,d'"),
        ("scope=all", "all"),
    ],
)
def test_a_sweep_holds_what_one_would_type(text: str, expected: str) -> None:
    assert " ".join(values(text)) == expected


def test_a_shuffled_range_holds_the_same_numbers() -> None:
    assert sorted(values("sparsity=shuffle(range(0.8,0.5,-0.1))")) == ["0.6", "0.7", "0.8"]


def test_the_last_option_changes_fastest() -> None:
    assert points(["seed=0,1", "scope=all", "method=wanda,isc"])[:3] == [
        ["seed=0", "scope=all", "method=wanda"],
        ["seed=0", "scope=all", "method=isc"],
        ["seed=1", "scope=all", "method=wanda"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sparsity=range(0.8,0.5,0.1)", "has no value: its step leads away from its end"),
        ("seed=range(0,3,0)", "has no value: its step is 0"),
        ("seed=range(3,3)", "has no value: it is empty"),
        ("seed=range(0)", "has no value: it is empty"),
        ("seed=range(0,inf)", "goes from a number to a number"),
        ("seed=range(0,1e18)", "a sweep takes at most 100000 points"),
        ("seed=interval(0,1)", "an interval has no values"),
        ("seed=choice()", "empty choice is not legal"),
        ("method=glob(zzz*)", "method=glob(zzz*) fits no method; known: admm, alps"),
        ("seed=glob(*)", "glob chooses among the names of a group"),
        ("cluster=joblib,local", "cluster is one for all points"),
        ("plugins=a.py,b.py", "plugins is one for all points"),
        ("model=[a,b]", "model takes one choice; -m model=a,b makes a sweep"),
        ("method=[wanda]", "method takes one choice"),
        ("method=wanda,3", "a choice has to be a name"),
        ("++cluster=joblib", "write cluster=joblib"),
        (f"seed={10**30}", "whole numbers go up to 9223372036854775807"),
        (f"seed={'9' * 5000}", "whole numbers go up to"),
        (f"calibration.windows=[1,-{2**63}]", "whole numbers go up to"),
        ("sparsity=1e-400", "1e-400 is too small a number"),
        ("sparsity=0.5,1e-400", "1e-400 is too small a number"),
        (f"sparsity=0.{'0' * 400}1", "is too small a number"),
        ("hydra.run.dir=/proc/nope", "of Hydra's own settings only those of a launcher"),
        ("+hydra.sweeper.params.seed='0,1'", "sweeps are typed as -m seed=0,1"),
        ("hydra.job.chdir=true", "records lie in records="),
        ("hydra.launcher._target_=os.system", "of Hydra's own settings"),
        ("~hydra", "of Hydra's own settings"),
        ("hydra@x=y", "of Hydra's own settings"),
        ("", "'' cannot be read: write <option>=<value>"),
        ("seed", "cannot be read"),
        ("records=a:b=c", """a value with = in two pairs of quotes, records='"a:b=c"'."""),
        ("save=/é/模", """a value with é模 in two pairs of quotes, save='"/é/模"'."""),
        ("seed=１", """seed=１ cannot be read: write <option>=<value>, a value with １ in two pairs of quotes"""),
        ("save=it's", """a value with ' in two pairs of quotes, save='"…"'."""),
        ("evaluation=[embedded-a", "write <option>=<value>, with every bracket closed"),
        ("=x", "'=x' names no option; write <option>=<value>."),
        (f"{'x' * 5000}=1", "names no option; write <option>=<value>."),
        (" seed=1", "cannot be read"),
        ("seed=" + "[" * 5000, "cannot be read"),
    ],
)
def test_what_cannot_be_meant(text: str, expected: str) -> None:
    with pytest.raises(UserError) as refused:
        points([text])
    assert expected in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        "seed=9223372036854775807",
        "sparsity=0.0",
        "sparsity=0e-999",
        "save='1e-400'",
        "model.path=/x/99999999999999999999",
    ],
)
def test_what_only_looks_like_a_number_out_of_range(text: str) -> None:
    assert points([text]) == [[text]]


def test_of_an_option_that_is_given_twice_the_last_counts_and_is_said() -> None:
    kept, said = last_of(["seed=0,1", "scope=all", "seed=2", "scope=all", "method=wanda", "method.group=row"])
    assert kept == ["scope=all", "seed=2", "method=wanda", "method.group=row"]
    assert said == ["seed=0,1 is replaced by seed=2, the last one counts"]


def test_an_option_is_not_both_set_and_added() -> None:
    with pytest.raises(UserError, match=r"seed=0 and \+\+seed=1 set one option twice"):
        read(["seed=0", "scope=all", "++seed=1"])


def test_a_sweep_of_too_many_points_is_counted_not_listed() -> None:
    with pytest.raises(UserError, match="make 1000000000000 points"):
        points([f"{key}=range(10000)" for key in ("seed", "evaluation_limit", "evaluation_window")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plugins=a.py", ["a.py"]), ("plugins=[a.py, 'b c.py']", ["a.py", "b c.py"]), ("plugins=[]", []), ("seed=1", [])],
)
def test_plugins(text: str, expected: list[str]) -> None:
    assert plugins_in([text]) == expected


@pytest.mark.parametrize("text", ["plugins=5", "plugins={a:1}", "plugins=[[a]]", "plugins=[a,1]", "plugins=true"])
def test_plugins_are_names(text: str) -> None:
    with pytest.raises(UserError, match="has to be modules or"):
        plugins_in([text])
