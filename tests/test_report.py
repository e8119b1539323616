"""The page is a pure function of the run, asks the network for nothing, and escapes every name."""

import base64
import copy
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources

import pytest
import sample_run

from parity.errors import OutputExistsError
from parity.report import first_entry, group_of, plain, render_report, report_html, source_table, spans

SMALL = {"blocks": 2, "dtypes": ("float32",)}
SCRIPTS = ("charts.js", "table.js")


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser reads them."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.inside, self.text = [], [], {}, []
        self.open = None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.open = (tag, dict(attrs).get("id"))

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open and self.open[0] in ("script", "style"):
            self.inside[self.open] = self.inside.get(self.open, "") + data
        else:
            self.text.append(data)


def unpack(source):
    return json.loads(gzip.decompress(base64.b64decode(Page(source).inside["script", "data"])))


def assert_nothing_foreign(source):
    """Only the page's own two scripts, no element or handler from a name, no control or direction marks."""
    page = Page(source)
    assert page.tags.count("script") == 2
    assert page.tags.count("style") == 1
    assert not {"img", "iframe", "object", "base", "form-action"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on") or key in ("src", "style", "srcdoc")]
    assert not re.search("[\x00-\x08\x0b-\x1f\u200e\u200f\u202a-\u202e\u2066-\u2069]", source)


def test_same_run_same_bytes_and_another_number_another_page():
    run = sample_run.diverged(**SMALL)
    first = report_html(run)
    assert first == report_html(copy.deepcopy(run))
    run["cases"][1]["checkpoints"][7]["candidate"]["mean"] *= 1 + 1e-12
    assert first != report_html(run)


def test_hostile_text_stays_text():
    source = report_html(sample_run.hostile(**SMALL))
    assert_nothing_foreign(source)
    shown = "".join(Page(source).text)
    assert "</script><img src=x onerror=alert(1)>\"'`&amp;\\u202egnp.exe\\u2066$x^{2$\\u0000" in shown
    assert "</script>" in json.dumps(unpack(source)["columns"]["name"])


@pytest.mark.parametrize("raw", ["</script><script>x</script>", "<img alt=''>", "<b onclick=x>", "\u202e", "\x00"])
def test_the_check_itself_finds_what_is_not_escaped(raw):
    source = report_html(sample_run.clean(**SMALL)).replace("</main>", raw + "</main>")
    with pytest.raises(AssertionError):
        assert_nothing_foreign(source)


def test_the_policy_allows_this_script_and_this_style_only():
    source = report_html(sample_run.clean(**SMALL))
    page = Page(source)
    policy = next(value for key, value in page.attributes if key == "content" and value.startswith("default-src"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inside[kind, None].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_no_address_outside_the_page():
    source = report_html(sample_run.clean(**SMALL))
    assert set(re.findall(r"https?://[^\"'\s<]+", source)) == {"http://www.w3.org/2000/svg"}
    assert all(address == "#" for address in re.findall(r"url\((.)", source))
    hrefs = {value for key, value in Page(source).attributes if key == "href"}
    assert all(value.startswith("#") or value == "data:," for value in hrefs)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_never_turn_text_into_markup(name):
    script = (resources.files("parity") / "templates" / name).read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|</script", script
    )
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", script)


def test_rows_in_the_page_are_the_rows_of_the_run():
    run = sample_run.nonfinite(**SMALL)
    columns = unpack(report_html(run))["columns"]
    rows = [row for case in run["cases"] for row in case["checkpoints"]]

    def word(key, i):
        return columns[key][0][columns[key][1][i]]

    def same(shown, exact):
        return shown == exact if not isinstance(exact, float) else shown == pytest.approx(exact, rel=6e-5)

    for i, row in enumerate(rows):
        assert word("name", i) == row["name"]
        assert word("verdict", i) == row["verdict"]
        assert columns["flags"][i] == row["source"] + 2 * row["propagated"]
        assert all(same(columns[key][i], row[key]) for key in ("rel_rmse", "floor", "excess", "psnr", "max_abs"))
        for key in ("min", "max", "absmax", "nan", "headroom"):
            reference, candidate = columns[f"reference.{key}"][i], columns[f"candidate.{key}"][i]
            assert same(reference, row["reference"][key])
            assert same(reference if candidate == "=" else candidate, row["candidate"][key])
    assert {"nan", "inf", "-inf"} <= set(map(str, columns["rel_rmse"] + columns["max_abs"] + columns["psnr"]))


def test_a_row_that_was_never_made_needs_only_a_name_and_a_verdict():
    run = sample_run.clean(**SMALL)
    run["cases"][0]["checkpoints"][3] = {"name": "time.proj", "verdict": "missing"}
    columns = unpack(report_html(run))["columns"]
    assert columns["excess"][3] is None
    assert columns["reference.min"][3] is None


def test_the_top_says_the_verdict_and_whether_weights_are_synthetic():
    run = sample_run.incomplete(**SMALL)
    text = "".join(Page(report_html(run)).text)
    assert "Incomplete" in text
    assert run["sentence"] in text
    assert "Synthetic weights." in text
    run["weights"]["synthetic"] = False
    assert "Synthetic weights." not in "".join(Page(report_html(run)).text)


def test_nothing_is_overwritten_without_force(tmp_path):
    run = sample_run.clean(**SMALL)
    out = tmp_path / "deep" / "report.html"
    assert render_report(run, out, force=False) == out
    assert out.read_text(encoding="utf-8") == report_html(run)
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match="--force"):
        render_report(run, out, force=False)
    assert out.read_text() == "mine"
    render_report(run, out, force=True)
    assert out.read_text() != "mine"


@pytest.mark.slow
def test_twelve_entries_fit_into_three_megabytes():
    run = sample_run.diverged(cases=("square", "portrait", "edit"))
    assert len(run["cases"]) == 12
    assert len(report_html(run).encode()) < 3_000_000


def test_sources_that_recur_are_one_line():
    table = source_table(sample_run.diverged(blocks=20, dtypes=("float32",)))
    assert [(line["group"], line["blocks"], len(line["entries"])) for line in table] == [
        ("block.NN.img.attn", "7–19", 2),
        ("block.NN.txt.attn", "7–19", 2),
    ]
    assert group_of("norm_out") == ("norm_out", None)
    assert spans([9, 0, 1, 2, 4]) == "0–2, 4, 9"


def test_the_page_opens_with_the_entry_of_the_first_divergence():
    run = sample_run.diverged(**SMALL)
    assert first_entry(run) == 0
    run["first_divergence"]["mode"] = "accumulated"
    assert first_entry(run) == 1
    run["first_divergence"] = None
    run["cases"][0]["verdict"] = "parity"
    assert first_entry(run) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (True, "yes"),
        (1933, "1,933"),
        (0.1, "0.1"),
        ([[1, 16, 16]], "(1, 16, 16)"),
        ({"a": [1, 2]}, "a 1, 2"),
    ],
)
def test_settings_as_text(value, text):
    assert plain(value) == text
