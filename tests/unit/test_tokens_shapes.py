"""Chats that are rendered by their shape: the tokens are those of the template itself."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment

from libs.tokens.looking import looks_into
from libs.tokens.shapes import MOST_TURNS
from libs.tokens.template import MARKS, TemplateRefusedError
from libs.tokens.tokenizer import Tokenizer
from tests.unit.test_tokens_words import BYTE_LEVEL, document

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<s>system\nKind<s>\n' }}"
    "{% endif %}{{'<s>' + message['role'] + '\n' + message['content'] + '<s>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
HARMLESS = [
    SMOLLM2,
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content if m.content is string else '' }}\n{% endfor %}",
    "{% for m in messages %}{% if m.role in ['user', 'x'] and not m.tool_calls %}{{ '<s>' ~ m.content }}{% endif %}"
    "{% if loop.last %}{{ messages[-1].content }}{% endif %}{% else %}nobody{% endfor %}",
    "{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}{% for m in messages %}{{ m.content }}"
    "{% if not loop.index0 is even %}{% break %}{% endif %}{% endfor %}",
    "{% set head = '<s>' + messages[0].role %}{{ head }}{% for m in messages %}{{ m['content'] }}<s>{% endfor %}",
]
LOOKING = [
    "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
    "{% for m in messages %}{% if m.content %}x{% endif %}{% endfor %}",
    "{% for m in messages %}{% if '</think>' in m.content %}x{% endif %}{% endfor %}",
    "{% for m in messages %}{{ (m.content + 'x')[:2] }}{% endfor %}",
    "{% for m in messages %}{{ m.content.split('x')[-1] }}{% endfor %}",
    "{% for m in messages %}{{ m.items() }}{% endfor %}",
    "{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "{% for m in messages %}{{ m['con' + 'tent'] | trim }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.content if loop.changed(m.content) else '' }}{% endfor %}",
    "{% for m in messages if m.content %}x{% endfor %}",
    "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}",
    "{% set x = messages[0].content %}{{ x | trim }}",
    "{% set all = messages %}{{ all[0].content | trim }}",
    "{% macro f(x) %}{{ x | trim }}{% endmacro %}{{ f(messages[0].content) }}",
    "{% set x %}{{ messages[0].content }}{% endset %}{{ x | trim }}",
    "{{ '%s' % messages[0].content }}",
    "{{ messages[0].content ~ 'x' == 'yx' }}",
    "{% for m in messages %}{{ m.role + (m.content + ('a' if m.content == 'b' else 'c')) }}{% endfor %}",
    "{{ raise_exception(messages[0].content) }}",
]
"""Some by a way on which nothing is seen of it: whatever is not known counts."""
ENVIRONMENT = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
LOOK = "{% if messages[0].content %}{% endif %}"
"""Makes a template one that looks, and nothing else."""
CHATS = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "assistant"]),
        st.lists(st.sampled_from(["<s>", "<", "s", ">", "s>", "<s", " a", "bc", "\n", "é", MARKS[0]])).map("".join),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("template", HARMLESS)
def test_templates_that_put_text_around_do_not_look(template: str) -> None:
    assert not looks_into(ENVIRONMENT.parse(template))
    assert looks_into(ENVIRONMENT.parse(template + LOOK))


@pytest.mark.parametrize("template", LOOKING)
def test_templates_that_may_look_are_taken_to(template: str) -> None:
    assert looks_into(ENVIRONMENT.parse(template))


def tokenizer(template: str) -> Tokenizer:
    return Tokenizer(json.dumps(document(BYTE_LEVEL)), {"chat_template": template})


@pytest.mark.parametrize("template", [*HARMLESS, "<{% for m in messages %}{{ m.content }}>{{ m.content }}{% endfor %}"])
def test_the_tokens_are_those_of_the_template_itself(template: str) -> None:
    shaped, rendered = tokenizer(template), tokenizer(template + LOOK)

    @settings(deadline=None)
    @given(CHATS)
    def check(chat: list[tuple[str, str]]) -> None:
        for _ in range(2):
            try:
                expected = rendered.render_chat(chat)
            except TemplateRefusedError as refusal:
                with pytest.raises(TemplateRefusedError, match=str(refusal)):
                    shaped.render_chat(chat)
            else:
                assert shaped.render_chat(chat) == expected

    check()


def test_long_chats_are_rendered_as_they_were() -> None:
    chat = [("user", f"turn {number}") for number in range(MOST_TURNS + 1)]
    assert tokenizer(SMOLLM2).render_chat(chat) == tokenizer(SMOLLM2 + LOOK).render_chat(chat)


def test_a_role_that_is_none_is_refused_each_time() -> None:
    shaped = tokenizer(SMOLLM2)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such role"):
            shaped.render_chat([("tool", "x")])
