"""What is public is in the catalogue, and what is in the catalogue is public."""

import functools
import inspect
import re
from typing import Any, get_args

import optax
import pytest

import optkit
from optkit._compositions import COMPOSITIONS as COMPOSED
from optkit.catalogue import Entry, Kind
from optkit.transforms import Transformation

# Compositions of catalogued parts that add no maths: their contracts are those of the parts.
COMPOSITIONS = {
    "descend",  # a direction > decay > learning rate; every recipe goes through it
    "freeze",  # route with one rule
    "inside",  # computes on parts of leaves what its inner one does; test_shard_map.py runs it
    "split_matrices",  # route by role; every matrix recipe goes through it
}


def _makes_a_transformation(value: object) -> bool:
    return inspect.isfunction(value) and (
        inspect.signature(value).return_annotation is Transformation
    )


def test_every_public_factory_is_in_the_catalogue() -> None:
    public = {}
    for module in (optkit, optkit.optimizers, optkit.transforms):
        public.update({name: getattr(module, name) for name in module.__all__})
    factories = {name for name, value in public.items() if _makes_a_transformation(value)}
    registered = {entry.name for entry in optkit.catalogue.entries()}
    assert factories - registered == COMPOSITIONS


def test_every_entry_is_public() -> None:
    for entry in optkit.catalogue.entries():
        # Aggregates have plain names, such as mean.
        module = _found(entry.path.rpartition(".")[0])
        assert entry.name in module.__all__
        assert getattr(module, entry.name) is entry.factory


def _found(path: str) -> Any:
    return functools.reduce(getattr, path.split(".")[1:], optkit)


# Of each module, what makes a method that is no transformation: by what it returns.
METHODS = {
    optkit.games: ("Solver", "GossipSolver"),
    optkit.federated: ("FedAmd",),
    optkit.privacy: ("DPBrem", "PrivateGradient"),
    optkit.outer: ("OuterStep",),
}


def test_every_method_of_nodes_and_clients_is_in_the_catalogue() -> None:
    registered = {entry.factory for entry in optkit.catalogue.entries()}
    for module, made in METHODS.items():
        for value in (getattr(module, name) for name in module.__all__):
            if inspect.isfunction(value):
                what = inspect.signature(value).return_annotation
                assert getattr(what, "__name__", "") not in made or value in registered, value


def test_every_kind_has_methods() -> None:
    kinds = {entry.kind for entry in optkit.catalogue.entries()}
    assert kinds == set(get_args(Kind))


def test_what_is_composed_says_of_what() -> None:
    for name, text in COMPOSED.items():
        with pytest.raises(KeyError, match=re.escape(text)):
            optkit.catalogue.get(name)
        paths = re.findall(r"optkit(?:\.\w+)+", text)
        assert paths, name
        for path in paths:
            assert callable(_found(path)), path


def test_every_entry_says_what_it_is() -> None:
    for entry in optkit.catalogue.entries():
        assert entry.summary.endswith((".", ":")) and entry.chain and entry.tags, entry.name
        assert set(entry.state_bytes) <= {*optkit.Role, "adapter", "*"}, entry.name
        _first_parameter_fits_the_kind(entry)


def _first_parameter_fits_the_kind(entry: Entry) -> None:
    first, *others = entry.hyperparameters().values()
    if entry.kind == "recipe":
        assert first.name == "learning_rate"
        assert all(p.kind == p.KEYWORD_ONLY for p in others), entry.name
    if entry.kind == "wrapper":
        assert first.name in ("inner", "full", "transformations"), entry.name


def test_a_call_that_does_not_fit_says_what_the_factory_takes() -> None:
    with pytest.raises(
        TypeError,
        match=r"muon\(\) got an unknown option 'wieght_decay'; did you mean 'weight_decay'\? "
        "it takes learning_rate, b1",
    ):
        optkit.muon(0.1, wieght_decay=0.1)
    with pytest.raises(TypeError, match=r"lion\(\) .*unknown option 'qqq'; it takes learning_rate"):
        optkit.lion(qqq=1)
    with pytest.raises(TypeError, match=r"lion\(\) cannot .*too many positional.*\(learning_rate"):
        optkit.lion(0.1, 0.9)
    with pytest.raises(TypeError, match=r"accumulate_gradients\(\) cannot .*missing.*'every'"):
        optkit.accumulate_gradients(optax.sgd(0.1))
