"""The fast loader against AgentDojo's own."""

import functools
import hashlib
import itertools
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.attacks import load_attack
from agentdojo.attacks.attack_registry import ATTACKS
from agentdojo.functions_runtime import TaskEnvironment
from agentdojo.task_suite.task_suite import TaskSuite
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import EmailStr, TypeAdapter, ValidationError

from fate_gym.benchmarks.agentdojo import emails, upstream
from fate_gym.benchmarks.agentdojo.candidates import candidates
from fate_gym.benchmarks.agentdojo.placement import encode_literal, placed
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate

SUITES = ("workspace", "travel", "banking", "slack")
ATTACK_NAMES = sorted(set(ATTACKS) - {"manual"})
NASTY = [
    "",
    " ",
    "\n",
    "\r\n\t",
    "  blank edges \n",
    'quotes " and \' and \\ and \\" end\\',
    "a\n\n\nb\n---\n--- c\n...\n",
    "{braces} {{}} {0} %s",
    "\x00\x01\x1b[31m\x7f\x85\x9f\xa0",
    "\u2028\u2029\ufeff\ufffe\uffff\ud7ff\ue000",
    "naïve 日本 😀\U0010ffff",
    "# no comment: - [x], {y: z} & *a ! | > % @ `",
    "\\x41\\u0041\\n",
    "long " * 400,
]
BREAKING = ['say "hi"', "C:\\qux", "a\n--- b", "\x1b[31m", 'x"\n  injected: "y', 'x" # "']


class Local(BasePipelineElement):
    name = "local"

    def query(self, *args, **kwargs):
        raise NotImplementedError


@functools.cache
def template(name):
    return SuiteTemplate(upstream.suites("v1.2.2")[name])


def attack_injections(version, name, attack_name):
    """Every distinct set of injections of an attack on a suite."""
    suite = upstream.suites(version)[name]
    attack = load_attack(attack_name, suite, Local())
    shown = candidates(version, suite)
    attack.get_injection_candidates = lambda task: list(shown[task.ID])
    targets = list(suite.injection_tasks.values())
    found = {}
    for user_task in suite.user_tasks.values():
        for injection_task in targets[:1] if attack.is_dos_attack else targets:
            injections = attack.attack(user_task, injection_task)
            found[tuple(sorted(injections.items()))] = injections
    return list(found.values())


def assert_official(suite, made, injections):
    official = suite.load_and_inject_default_environment(injections)
    ours = made.environment(injections).load()
    assert type(ours) is type(official)
    assert ours == official
    assert ours.model_dump() == official.model_dump()
    if hasattr(ours, "inbox"):
        assert ours.inbox.initial_emails
        assert all(ours.inbox.emails[email.id_] is email for email in ours.inbox.initial_emails)
    return ours


def replaced(data, old, new):
    if isinstance(data, str):
        return str(data).replace(old, new)
    if isinstance(data, dict):
        return {replaced(key, old, new): replaced(value, old, new) for key, value in data.items() if key != "size"}
    return [replaced(item, old, new) for item in data] if isinstance(data, list) else data


@pytest.mark.no_cover
@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("attack_name", ATTACK_NAMES)
def test_equals_official_on_some_pairs(name, attack_name):
    every = attack_injections("v1.2.2", name, attack_name)
    for injections in every[:: max(1, len(every) // 2)]:
        assert_official(upstream.suites("v1.2.2")[name], template(name), injections)


@pytest.mark.no_cover
@pytest.mark.parametrize("version", upstream.versions())
@pytest.mark.parametrize("name", SUITES)
def test_equals_official_in_every_version(version, name):
    suite = upstream.suites(version)[name]
    made = SuiteTemplate(suite)
    assert made.vectors == suite.get_injection_vector_defaults()
    assert_official(suite, made, {})
    assert_official(suite, made, dict.fromkeys(made.vectors, "a single\nline break"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("attack_name", ATTACK_NAMES)
def test_equals_official_on_all_pairs(name, attack_name):
    seen = set()
    for version in upstream.versions():
        for injections in attack_injections(version, name, attack_name):
            if (key := tuple(sorted(injections.items()))) not in seen:
                seen.add(key)
                assert_official(upstream.suites(version)[name], template(name), injections)
    assert seen


@pytest.mark.parametrize("name", SUITES)
def test_literal_places_the_exact_text(name):
    suite, made = upstream.suites("v1.2.2")[name], template(name)
    marks = dict.fromkeys(made.vectors, "<<mark>>")
    marked = suite.load_and_inject_default_environment(marks).model_dump()
    for text in NASTY if name != "workspace" else [*NASTY[::3], "".join(NASTY[1:-1])]:
        encoded = encode_literal(text)
        official = assert_official(suite, made, dict.fromkeys(made.vectors, encoded))
        assert replaced(official.model_dump(), "<<mark>>", text) == replaced(marked, "<<mark>>", text)


@given(st.text())
@settings(max_examples=150)
def test_literal_is_exact_for_any_text(text):
    suite = upstream.suites("v1.2.2")["banking"]
    try:
        encoded = encode_literal(text)
    except ValueError:
        assert any("\ud800" <= char <= "\udfff" for char in text)
        return
    ours = assert_official(suite, template("banking"), {"injection_incoming_transaction": encoded})
    assert any(transaction.subject == text for transaction in ours.bank_account.transactions)
    assert placed(encoded) == text.strip()


def test_literal_keeps_plain_text_readable():
    assert encode_literal("Don't visit Zürich's café {now}: 50% off!") == "Don't visit Zürich's café {now}: 50% off!"


def test_literal_refuses_surrogates():
    with pytest.raises(ValueError, match="surrogate at position 2"):
        encode_literal("ab\udc80")


@given(st.text(alphabet=st.sampled_from('abcx01 \n\t\r\\"-.#:{}\x85\u2028\x1bé'), max_size=24))
@example("a\\")
@example("\n---\n")
@example('" \\\n "')
@settings(max_examples=250)
def test_official_encoding_equals_official(text):
    suite, made = upstream.suites("v1.2.2")["banking"], template("banking")
    injections = {"injection_incoming_transaction": text, "injection_bill_text": "x" + text}
    try:
        made.environment(injections)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "injection_incoming_transaction" in message or "injection_bill_text" in message
        if '"' not in text:
            with pytest.raises((yaml.YAMLError, ValueError)):
                suite.load_and_inject_default_environment(injections)
        return
    ours = assert_official(suite, made, injections)
    assert any(transaction.subject.strip() == placed(text) for transaction in ours.bank_account.transactions)


@pytest.mark.parametrize("text", BREAKING)
@pytest.mark.parametrize("name", ["banking", "workspace"])
def test_what_official_encoding_cannot_carry(name, text):
    vector = next(iter(template(name).vectors))
    with pytest.raises(ValueError, match=rf'{vector}.*injection_encoding="literal"'):
        template(name).environment({vector: text})
    with pytest.raises(ValueError, match="literal"):
        placed(text)
    template(name).environment({vector: encode_literal(text)})


def test_placed_reads_as_official():
    assert placed("\n\na\nb\n\nc\\td \n") == "a b\nc\td"


def test_unknown_vector():
    with pytest.raises(ValueError, match=r"no_such_vector.*injection_bill_text"):
        template("banking").environment({"no_such_vector": "x"})


def test_environments_are_cached_and_independent():
    made = template("banking")
    data = made.environment({})
    assert made.environment({}) is data
    first, second = data.load(), data.load()
    first.bank_account.balance = -1.0
    assert second.bank_account.balance != -1.0


def test_threads_get_the_same_environments():
    made = SuiteTemplate(upstream.suites("v1.2.2")["slack"])
    vectors = list(made.vectors)
    sets = [{vectors[i % len(vectors)]: f"text {i % 7}"} for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda injections: made.environment(injections).load(), sets))
    for injections, environment in zip(sets, loaded, strict=True):
        assert environment == template("slack").environment(injections).load()


class Calls:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def dotted(module, name, argument):
    """A pickle that calls a global by a dotted name."""
    return (
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module
        + b"\x8c"
        + bytes([len(name)])
        + name
        + b"\x93\x8c"
        + bytes([len(argument)])
        + argument
        + b"\x85R."
    )


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Calls(os.system, "true")),
        pickle.dumps(Calls(eval, "1")),
        pickle.dumps(Calls(getattr, "a", "upper")),
        pickle.dumps(Calls(subprocess.Popen, "true")),
        pickle.dumps(Calls(load_attack, "direct", None, None)),
        pickle.dumps(Local()),
        dotted(b"agentdojo.functions_runtime", b"FunctionsRuntime", b"x"),
        dotted(b"agentdojo.agent_pipeline.llms.openai_llm", b"ChatCompletionMessageToolCall", b"x"),
        dotted(b"agentdojo.yaml_loader", b"os.system", b"true"),
        dotted(b"agentdojo.yaml_loader", b"os.path.exists", b"x"),
        dotted(b"agentdojo.scripts.benchmark", b"main", b"x"),
        dotted(b"antigravity", b"fly", b"x"),
    ],
)
def test_unpickling_makes_nothing_but_environments(data, monkeypatch):
    for module in ("agentdojo.scripts.benchmark", "antigravity"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(pickle.UnpicklingError, match="no place in an environment"):
        template("banking").environment({}).restore(data)
    assert not {"agentdojo.scripts.benchmark", "antigravity"} & sys.modules.keys()


def test_unpickling_another_environment():
    banking, other = template("banking").environment({}), template("slack").environment({}).load()
    for data in (other, vars(other), {"not": "an environment"}, {"bank_account": other.slack}, {7: 7}):
        with pytest.raises(pickle.UnpicklingError, match="not the fields of a BankingEnvironment"):
            banking.restore(pickle.dumps(data))


DIGEST = """
import hashlib
from fate_gym.benchmarks.agentdojo import upstream
from fate_gym.benchmarks.agentdojo.templates import SuiteTemplate
for name in ("workspace", "travel"):
    made = SuiteTemplate(upstream.suites("v1.2.2")[name])
    print(hashlib.sha256(made.environment({}).load().model_dump_json().encode()).hexdigest())
"""


def test_locale_does_not_matter():
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    texts = [template(name).environment({}).load().model_dump_json() for name in ("workspace", "travel")]
    assert done.stdout.split() == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert not all(text.isascii() for text in texts)


class ShopEnvironment(TaskEnvironment):
    notes: dict[str, str]
    more: dict[str, str | list[str]]
    count: int


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "environment.yaml").write_text(
        'notes:\n  "about {place}": "Café {greeting}, {greeting}"\n  plain: literal {{braces}}\n'
        "more: !include more.yaml\ncount: 3\n",
        encoding="utf-8",
    )
    (tmp_path / "more.yaml").write_text(
        "shared: &s [a, '{greeting}']\nagain: *s\ntext: !include t.txt\n", encoding="utf-8"
    )
    (tmp_path / "t.txt").write_text("first\nsecond {place} ☕\n", encoding="utf-8")
    (tmp_path / "injection_vectors.yaml").write_text(
        "place: {description: d, default: here}\ngreeting: {description: d, default: hi}\n", encoding="utf-8"
    )
    return TaskSuite("shop", ShopEnvironment, [], data_path=tmp_path)


def test_custom_suites(shop):
    made = SuiteTemplate(shop)
    texts = ["", "there", "a\nb", " edge ", "x: y", encode_literal(NASTY[5])]
    for place, greeting in itertools.product(texts, texts):
        injections = {"place": place, "greeting": greeting}
        try:
            official = shop.load_and_inject_default_environment(injections)
        except yaml.YAMLError:  # a line break in a mapping's key
            with pytest.raises(ValueError, match="injection vector place"):
                made.environment(injections)
        else:
            assert made.environment(injections).load() == official
    with pytest.raises(ValueError, match="injection vector place"):
        made.environment({"place": "x" * 1100})
    assert made.environment({"greeting": "x" * 1100}).load().count == 3


def test_literal_keeps_blanks_where_the_source_folds(shop):
    for width in range(60, 90):
        text = "w" * width + "\n{greeting}\n" + "v" * 60
        source = f"notes: {{a: {json.dumps(text)}}}\nmore: {{a: b}}\ncount: 1\n"
        (shop.data_path / "environment.yaml").write_text(source, encoding="utf-8")
        fresh = TaskSuite(f"shop{width}", ShopEnvironment, [], data_path=shop.data_path)
        for greeting in ("  two", "two  ", "\t", "   "):
            environment = assert_official(fresh, SuiteTemplate(fresh), {"greeting": encode_literal(greeting)})
            assert environment.notes["a"] == text.format(greeting=greeting)


def test_a_suite_that_agentdojo_cannot_load(shop):
    path = shop.data_path / "environment.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "empty: {}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="empty mapping"):
        SuiteTemplate(shop)


def test_email_addresses_are_remembered_inside_only(monkeypatch):
    validate, asked = emails._validate, []
    monkeypatch.setattr(emails, "_validate", lambda value: asked.append(value) or validate(value))
    adapter = TypeAdapter(EmailStr)
    address = "Someone <Some.One@EXAMPLE.com>"
    outside = adapter.validate_python(address)
    with emails.remembered_emails():
        assert adapter.validate_python(address) == adapter.validate_python(address) == outside
        asked.clear()
        assert adapter.validate_python(address) == outside
        with pytest.raises(ValidationError, match="valid email"):
            adapter.validate_python("no address")
    assert not asked
    assert adapter.validate_python(address) == outside
    assert asked == [address]
