"""Which maps a text names: roles, groups, globs, exceptions, and answers to typos."""

import pytest
import tiny

from fewer.models import sites


def named(model, where):
    return [s.name for s in sites(model, where)]


def test_patterns_are_roles_groups_globs_and_exceptions():
    model = tiny.build("qwen2_moe")
    count = lambda where: len(sites(model, where))  # noqa: E731
    assert count("q") == 2 and count("q,k") == 4 and count("attention") == 8
    assert count("mlp") == 2 * (12 + 3) and count("experts") == 2 * 12
    assert count("mlp,!experts") == 6 and count("!experts") == count("*") - 24 == 14
    assert count("model.layers.1.*") == 19 and count("*.mlp.*") == 30
    assert count("*.experts.gate_up_proj[2][up]") == 2 and count("*.experts.gate_up_proj") == 16
    assert count("*, router") == count("*") + 4
    assert named(model, "*.mlp.gate") == ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    assert named(model, "lm_head, o") == [f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)] + ["lm_head"]


def test_every_site_answers_to_its_own_name():
    for family in ("gpt2", "mixtral"):
        model = tiny.build(family)
        for site in sites(model):
            assert named(model, site.name) == [site.name]


@pytest.mark.parametrize("family, role", [("llama", "embed"), ("bert", "head"), ("vit", "head"), ("mixtral", "router")])
def test_what_lies_outside_the_blocks_and_routers_must_be_asked_for(family, role):
    model = tiny.build(family)
    assert role not in {s.role for s in sites(model)}
    assert sites(model, role)


@pytest.mark.parametrize(
    "where, hint",
    [("up_porj", r"\*\.up_proj"), ("*.mpl.*", r"\*\.mlp\.\*"), ("lm_hed", "lm_head"), ("attentoin", "attention")],
)
def test_a_pattern_that_finds_nothing_is_answered_with_what_would(where, hint):
    with pytest.raises(ValueError, match=f"matches '{where}'; close: .*{hint}".replace("'*.mpl.*'", r"'\*.mpl.\*'")):
        sites(tiny.build("llama"), f"q,{where}")


@pytest.mark.parametrize("where", ["", "q,,k", "!"])
def test_an_empty_pattern_is_refused(where):
    with pytest.raises(ValueError, match="an empty pattern"):
        sites(tiny.build("llama"), where)
