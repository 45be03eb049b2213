"""What every registered model keeps: shapes, finite answers, a state that travels, a start that repeats."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contracts.errors import ConsiliumError
from models.registry import (
    MODELS,
    batchnorm_layers,
    build_model,
    initial_state,
    load_state,
    parameter_names,
    state_of,
    trained_names,
    without_batchnorm,
)
from tests.factories import tiny_study
from tests.model_zoo import batch, rows, zoo

ZOO = zoo()
every_model = pytest.mark.parametrize("name", sorted(MODELS))


def started(name):
    """A model of the zoo away from zero weights."""
    model = build_model(ZOO[name])
    draw = np.random.default_rng(0)
    state = initial_state(ZOO[name])
    load_state(model, {k: (v + draw.normal(0, 0.3, v.shape)).astype(np.float32) for k, v in state.items()})
    return model


def test_the_zoo_holds_every_registered_model():
    assert set(ZOO) == set(MODELS)


@every_model
@settings(max_examples=10, deadline=None)
@given(shape=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 1000))
def test_a_record_gets_the_same_logits_wherever_it_stands(name, shape, seed):
    study, model = ZOO[name], started(name)
    labels = 1 + len(study.auxiliary_labels)
    flat = torch.from_numpy(rows(study, int(np.prod(shape)), seed))
    x = flat.reshape(*shape, len(study.features))
    with torch.no_grad():
        logits, everything = model(x), model.all_logits(x)
        alone = [model(row) for row in flat]
    assert logits.shape == tuple(shape) and everything.shape == (*shape, labels)
    assert logits.dtype == torch.float32 and torch.isfinite(everything).all()
    torch.testing.assert_close(everything[..., 0], logits)
    if alone:
        torch.testing.assert_close(logits.flatten(), torch.stack(alone), rtol=1e-4, atol=1e-5)


@every_model
def test_absurd_and_missing_values_give_finite_logits_and_gradients(name):
    study, model = ZOO[name], started(name)
    extreme = [np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0]
    x = torch.tensor(extreme).unsqueeze(1).expand(-1, len(study.features)).contiguous()
    logits = model.all_logits(x)
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@every_model
def test_a_batch_of_nobody_gives_zero_gradients(name):
    study, model = ZOO[name], started(name)
    model.all_logits(torch.zeros(0, 2, len(study.features))).sum().backward()
    assert all(not p.grad.any() for p in model.parameters())


@every_model
def test_state_goes_out_and_back_and_training_moves_the_network_alone(name):
    study, model = ZOO[name], started(name)
    other = build_model(study)
    load_state(other, state_of(model))
    x = torch.from_numpy(batch(study, 5, seed=1)[0])
    with torch.no_grad():
        assert torch.equal(other.all_logits(x), model.all_logits(x))
    assert all(array.dtype == np.float32 for array in state_of(model).values())
    assert trained_names(model) == parameter_names(model)
    assert {n for n in state_of(model) if n.startswith("network.")} == set(trained_names(model))
    state = state_of(model)
    state.pop(parameter_names(model)[0])
    with pytest.raises(RuntimeError):
        load_state(other, state)


@every_model
def test_the_start_is_the_same_again_and_another_for_another_study(name):
    first, again = initial_state(ZOO[name]), initial_state(ZOO[name])
    assert all(np.array_equal(first[k], again[k]) for k in first)
    if name != "logistic":  # it starts at zero, whatever the study
        other = initial_state(zoo(title="Another")[name])
        assert any(not np.array_equal(first[k], other[k]) for k in first)


def test_the_start_of_earlier_studies_has_not_moved():
    """Golden: a replay of a study from before must find its first model."""
    found = {}
    for model in ({"name": "logistic"}, {"name": "mlp", "hidden": [8, 4], "missing_indicators": True}):
        mac = hashlib.sha256()
        for name, array in initial_state(tiny_study(model=model)).items():
            mac.update(name.encode() + array.tobytes())
        found[model["name"]] = mac.hexdigest()
    assert found == {
        "logistic": "3d2237c26af585df4de92e9d3ff579732914331cd879efbaa505b588777d113d",
        "mlp": "e321e071babeaa4be61d98048893bee62c512378dac3b519826b3a44b1e898db",
    }


@every_model
def test_a_model_that_is_no_regression_starts_with_signal_in_every_layer(name):
    model = build_model(ZOO[name])
    load_state(model, initial_state(ZOO[name]))
    x = torch.from_numpy(batch(ZOO[name], 20, seed=2)[0])
    model.all_logits(x).square().sum().backward()
    if name == "logistic":
        return
    assert all(p.grad.any() for p in model.parameters())  # a scale of 0 would cut off all before it


# What each model asks of a study


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("lstm", {"time_steps": None}, "time_steps is not set"),
        ("lstm", {"time_steps": 5}, "time_steps 5: expected a divisor of the 12 features"),
        ("lstm", {"time_steps": 6}, "feature 'ventilated_0' of time step 2 is coded"),
        ("lstm", {"hidden": [4, 4]}, "expected one width"),
        ("cnn", {"image": None}, "image is not set"),
        ("cnn", {"image": [8, 7]}, "56 values, the study has 64 features"),
        ("cnn", {"hidden": [4]}, "two convolutions"),
        ("cnn", {"image": [64, 1], "hidden": [4, 1], "norm": "group"}, None),
        ("mlp", {"time_steps": 3}, "'model.time_steps': model mlp does not read it, lstm does"),
        ("mlp", {"image": [1, 3]}, "'model.image'"),
        ("resnet", {}, "'model.name': 'resnet'"),
    ],
)
def test_a_model_says_which_field_it_cannot_work_with(name, changes, said):
    study = ZOO.get(name, ZOO["mlp"])
    model = {**study.model.model_dump(exclude_unset=True), **changes, "name": name}
    asked = study.model_copy(update={"model": type(study.model).model_validate(model)})
    if said is None:
        build_model(asked)
        return
    with pytest.raises(ConsiliumError, match="E101") as refused:
        build_model(asked)
    assert said in refused.value.detail


def test_series_and_pictures_of_the_wrong_features_are_refused():
    changed = zoo()["lstm"].model_dump(by_alias=True, exclude_unset=True)
    changed["features"][5]["levels"] = [0, 1, 2]  # of the second time step
    with pytest.raises(ConsiliumError, match=r"E101.*ventilated_1.*time step 2"):
        build_model(tiny_study(**changed))
    coded = zoo()["cnn"].model_dump(by_alias=True, exclude_unset=True)
    coded["features"][7] = {"name": "sex", "kind": "categorical", "levels": [0, 1]}
    with pytest.raises(ConsiliumError, match=r"E101.*'sex' is categorical"):
        build_model(tiny_study(**coded))


def test_a_map_of_one_value_is_not_normalised():
    features = [{"name": f"p{i}", "kind": "numeric", "unit": "1", "range": [0, 1]} for i in range(4)]
    for norm in ("group", "batch"):
        model = {"name": "cnn", "image": [2, 2], "hidden": [4, 1], "norm": norm}
        with pytest.raises(ConsiliumError, match=r"E101.*norm"):
            build_model(tiny_study(features=features, subgroups=[], model=model))


def test_auxiliary_labels_belong_to_a_model_that_reads_them():
    auxiliary = [{"name": "readmitted", "positive": "readmitted"}]
    with pytest.raises(ConsiliumError, match=r"E101.*'auxiliary_labels'.*mlp"):
        build_model(tiny_study(model={"name": "mlp"}, auxiliary_labels=auxiliary))
    with pytest.raises(ConsiliumError, match=r"E101.*needs auxiliary_labels"):
        build_model(tiny_study(model={"name": "multitask"}))


# Series


def test_an_lstm_reads_each_time_step_as_a_whole_and_in_order():
    """Its logit is that of nn.LSTM over (steps x columns), built by hand from the study's definition."""
    study = zoo(model={"name": "lstm", "time_steps": 4, "hidden": [6], "missing_indicators": True})["lstm"]
    model = build_model(study)
    load_state(model, initial_state(study))
    x = torch.from_numpy(rows(study, 9, seed=3))
    steps = x.reshape(9, 4, 3)
    low, high = torch.tensor([20.0, 0.0]), torch.tensor([220.0, 20.0])
    numeric = (torch.clamp(steps[..., :2], low, high) - (low + high) / 2) / ((high - low) / 4)
    by_hand = torch.cat(
        [torch.nan_to_num(numeric), (steps[..., 2:] == 1).float(), torch.isnan(steps).float()], dim=-1
    )
    with torch.no_grad():
        _, (last, _) = model.network.lstm(by_hand)
        torch.testing.assert_close(model(x), model.network.head(last[0]).squeeze(-1))


def test_the_last_time_step_is_the_latest():
    """With the forget gate shut and the rest open, only the last block can matter."""
    study, model = ZOO["lstm"], started("lstm")
    with torch.no_grad():
        model.network.lstm.weight_hh_l0.zero_()
        model.network.lstm.bias_ih_l0[6:12] = -50.0  # the forget gate
        model.network.lstm.weight_ih_l0[6:12].zero_()
        x = torch.from_numpy(rows(study, 8, seed=4))
        earlier, later = x.clone(), x.clone()
        earlier[:, :9], later[:, 9:] = torch.nan, torch.nan
        torch.testing.assert_close(model(earlier), model(x))
        assert not torch.allclose(model(later), model(x))


# Pictures


def test_missing_indicators_are_channels_of_the_picture():
    study = zoo(model={"name": "cnn", "image": [2, 4, 8], "missing_indicators": True, "hidden": [4, 4]})[
        "cnn"
    ]
    model = build_model(study)
    assert model.network.shape == (4, 4, 8)
    x = torch.zeros(1, 64)
    x[0, 32 + 8 + 3] = torch.nan  # second channel, second row, fourth column
    inputs = model.preprocessing(x).reshape(4, 4, 8)
    assert inputs[3, 1, 3] == 1 and inputs[2:].sum() == 1


@pytest.mark.parametrize("channels", range(1, 20))
def test_groups_divide_the_channels_and_none_is_a_single_one(channels):
    study = zoo(model={"name": "cnn", "image": [8, 8], "hidden": [channels, channels]})["cnn"]
    layers = [m for m in build_model(study).modules() if isinstance(m, nn.GroupNorm)]
    assert len(layers) == 2
    for layer in layers:
        assert channels % layer.num_groups == 0 and layer.num_groups <= 4
        assert channels == 1 or channels // layer.num_groups > 1


def batchnorm_study():
    return zoo(
        model={"name": "cnn", "image": [8, 8], "hidden": [4, 6], "norm": "batch"}, privacy={"mode": "none"}
    )["cnn"]


def test_batchnorm_is_found_and_group_normalisation_takes_its_place():
    study, grouped = batchnorm_study(), build_model(ZOO["cnn"])
    model = build_model(study)
    assert batchnorm_layers(model) == ["network.layers.1", "network.layers.4"]
    fixed = without_batchnorm(model)
    assert batchnorm_layers(fixed) == [] and batchnorm_layers(model)  # a copy
    assert all(batchnorm_layers(build_model(other)) == [] for other in ZOO.values())
    # It is the network of `norm: group`: the same parts, and the same function of the same parameters.
    assert str(fixed.network) == str(grouped.network)
    load_state(grouped, state_of(fixed))
    x = torch.from_numpy(batch(study, 4, seed=5)[0])
    with torch.no_grad():
        assert torch.equal(fixed(x), grouped(x))


def test_what_batchnorm_learned_travels_with_the_model():
    study = batchnorm_study()
    model = build_model(study)
    load_state(model, initial_state(study))
    x = torch.from_numpy(batch(study, 16, seed=6)[0])
    model.train()(x)
    assert set(trained_names(model)) == {n for n in state_of(model) if n.startswith("network.")}
    other = build_model(study)
    load_state(other, state_of(model))
    with torch.no_grad():
        assert torch.equal(other.eval()(x), model.eval()(x))
        load_state(other, initial_state(study))
        assert not torch.equal(other.eval()(x), model(x))


def test_the_first_model_with_batchnorm_is_finite_after_a_batch_of_nobody():
    model = build_model(batchnorm_study()).train()
    model(torch.zeros(0, 2, 64))
    with torch.no_grad():
        assert torch.isfinite(model.eval()(torch.zeros(3, 64))).all()


# Several labels


def test_the_trunk_learns_from_auxiliary_labels_and_the_first_logit_never_reads_their_heads():
    model, x = started("multitask"), torch.from_numpy(batch(ZOO["multitask"], 6, seed=7)[0])
    before = model(x).detach()
    model.all_logits(x)[..., 1:].sum().backward()
    assert model.network.trunk[0].weight.grad.any()
    assert model.network.heads[0].weight.grad is None or not model.network.heads[0].weight.grad.any()
    with torch.no_grad():
        for head in model.network.heads[1:]:
            head.weight.fill_(1e6)
        assert torch.equal(model(x), before)


# The zoo's patients


@every_model
def test_patients_of_the_zoo_are_as_a_trainer_gets_them(name):
    study = ZOO[name]
    x, mask, y = batch(study, 40, seed=8)
    labels = 1 + len(study.auxiliary_labels)
    assert x.shape == (40, 2, len(study.features)) and mask.shape == (40, 2)
    assert y.shape == ((40, 2) if labels == 1 else (40, 2, labels))
    assert mask[:, 0].all() and not mask.all() and not x[~mask].any() and np.isnan(x[mask]).any()
    primary = y if labels == 1 else y[..., 0]
    assert set(np.unique(primary)) == {0.0, 1.0} and not primary[~mask].any()
    assert labels == 1 or (np.isnan(y[mask][:, 1:]).any() and not np.isnan(y[mask]).all())
    assert np.array_equal(x, batch(study, 40, seed=8)[0], equal_nan=True)
