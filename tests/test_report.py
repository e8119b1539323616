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
from parity.report import (
    SCRIPTS,
    by_component,
    card,
    first_entry,
    plain,
    render_report,
    report_html,
    size_of,
    source_table,
    spans,
)

SMALL = {"blocks": 2, "dtypes": ("float32",)}


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
    """Only the page's own scripts and pictures, nothing from a name, no control or direction marks."""
    page = Page(source)
    assert page.tags.count("script") == 2
    assert page.tags.count("style") == 1
    assert not {"iframe", "object", "base", "form-action"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on") or key in ("style", "srcdoc")]
    assert all(re.fullmatch("[a-z][a-z-]*[0-9]?", key) for key, _ in page.attributes)
    sources = [value for key, value in page.attributes if key == "src"]
    assert len(sources) == page.tags.count("img")
    assert all(re.fullmatch("data:image/png;base64,[A-Za-z0-9+/=]+", value) for value in sources)
    assert not re.search("[\x00-\x08\x0b-\x1f\u200e\u200f\u202a-\u202e\u2066-\u2069]", source)


def test_same_run_same_bytes_and_another_number_another_page():
    run = sample_run.diverged(**SMALL)
    first = report_html(run)
    assert first == report_html(copy.deepcopy(run))
    run["cases"][1]["checkpoints"][7]["candidate"]["mean"] *= 1 + 1e-6
    assert first != report_html(run)


def test_hostile_text_stays_text():
    source = report_html(sample_run.hostile(**SMALL))
    assert_nothing_foreign(source)
    shown = "".join(Page(source).text)
    assert "</script><img src=x onerror=alert(1)>\"'`&amp;\\u202egnp.exe\\u2066$x^{2$\\u0000" in shown
    assert "</script>" in json.dumps(unpack(source)["columns"]["name"])
    assert not re.search("[\x00-\x1f\u202a-\u202e\u2066-\u2069]", json.dumps(unpack(source), ensure_ascii=False))
    assert "\\u202egnp" in unpack(source)["columns"]["name"][0][0]


@pytest.mark.parametrize(
    "raw", ["</script><script>x</script>", "<img alt=''>", "<img src=x>", "<b onclick=x>", "\u202e", "\x00"]
)
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
    # The second one is in a comment: where the library comes from.
    known = {"http://www.w3.org/2000/svg", "https://github.com/leeoniya/uPlot"}
    assert set(re.findall(r"https?://[^\"'\s<]+", source)) == known
    assert all(address == "#" for address in re.findall(r"url\((.)", source))
    hrefs = {value for key, value in Page(source).attributes if key == "href"}
    assert all(value.startswith("#") or value == "data:," for value in hrefs)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_never_turn_text_into_markup(name):
    script = (resources.files("parity") / "templates" / f"{name}.js").read_text(encoding="utf-8")
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
    assert [(line["group"], line["where"], len(line["entries"])) for line in table] == [
        ("block.NN.img.attn", "blocks 7–19", 2),
        ("block.NN.txt.attn", "blocks 7–19", 2),
    ]
    run = sample_run.clean(component="pipeline", blocks=2, inside=(0, 4), dtypes=("float32",))
    run["cases"][0]["sources"] = ["pipeline.image", *(f"step.0{s}.cond.block.01.img.q" for s in (0, 4))]
    assert [(line["group"], line["where"]) for line in source_table(run)] == [
        ("pipeline.image", ""),
        ("step.NN.cond.block.NN.img.q", "steps 0, 4; block 1"),
    ]
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


COMPONENTS = ("transformer", "text", "vision", "vae", "scheduler", "pipeline")


def of(component, kind="clean", **options):
    return getattr(sample_run, kind)(component=component, **SMALL | options)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_has_a_page_that_says_where_each_row_stands(component):
    run = of(component, "diverged", inside=(0,))
    source = report_html(run)
    assert_nothing_foreign(source)
    data = unpack(source)
    columns, entries = data["columns"], data["head"]["entries"]
    assert sum(entry["rows"] for entry in entries) == len(columns["index"])
    for key in ("stream", "kind", "where"):
        assert len(columns[key][1]) == len(columns["index"])
    for entry in entries:
        repeated = [index for index in columns["index"][: entry["rows"]] if index is not None]
        sections = entry["sections"]
        assert len(repeated) > 0 or [part["unit"] for part in sections] == [""]
        assert all(part["count"] > 0 for part in sections if part["unit"])
        assert sections[entry["main"]]["prefix"] == ""


def test_filters_are_made_of_what_the_rows_hold():
    columns = unpack(report_html(of("pipeline", inside=(3,))))["columns"]
    assert set(columns["where"][0]) == {
        "outside the steps", "steps", "image stream, inside step 03, cond", "text stream, inside step 03, cond",
        "outside the blocks, inside step 03, cond", "image stream, inside step 03, uncond",
        "text stream, inside step 03, uncond", "outside the blocks, inside step 03, uncond",
    }  # fmt: skip
    template = (resources.files("parity") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    assert '<option value="img"' not in template


def test_the_page_says_by_what_factor_an_error_grows():
    run = of("pipeline", level="kinds")
    entry = unpack(report_html(run))["head"]["entries"][0]
    assert re.match(r"Over 8 steps the error of the latents grows from .*, a factor of \d", entry["growth"])
    assert unpack(report_html(of("text")))["head"]["entries"][0]["growth"] == ""


def test_few_entries_are_cards_and_many_a_table():
    few, many = (
        Page(report_html(sample_run.several(dtypes=dtypes))) for dtypes in (("float32",), ("float32", "bfloat16"))
    )
    for page, table in ((few, False), (many, True)):
        classes = [value for key, value in page.attributes if key == "class"]
        assert ("matrix" in classes) == table
        entries = {int(value) for key, value in page.attributes if key == "data-entry"}
        assert entries == set(range(12 * (1 + table)))
        assert sum("card" in value.split() for value in classes) == len(entries)
        assert {"text encoder", "vision tower", "VAE", "scheduler", "pipeline"} <= set(page.text)


def test_a_card_says_of_exact_checkpoints_whether_they_are_equal():
    clean, wrong = (card(of("scheduler", kind)["cases"][0]) for kind in ("clean", "diverged"))
    assert (clean["worst"], wrong["worst"]) == ("all equal", "5 differ")
    text = card(of("text")["cases"][0])
    assert (text["exact"], text["differ"], text["only_exact"]) == (4, 0, False)
    assert float(text["worst"]) > 0
    assert list(by_component([clean, text])) == ["scheduler", "text encoder"]


@pytest.mark.parametrize(
    ("component", "text"),
    [
        ("transformer", "256 image tokens and 32 text tokens"),
        ("text", "2 prompts, template image"),
        ("vision", "2 pictures given, 140 × 196, 84 × 84"),
        ("vae", "64 × 96, encode and decode"),
        ("scheduler", "256 image tokens, batch of 2, 8 steps, checkpoint settings"),
        ("pipeline", "text to image, 96 × 128, prompt “a red panda reading a newspaper”, 8 steps, guidance 4"),
    ],
)
def test_inputs_in_a_few_words(component, text):
    assert size_of(sample_run.INPUTS[component]) == text


def test_inputs_that_are_not_known_are_not_spoken_of():
    assert size_of({}) == ""
    assert size_of({"pictures": [[150, 200]], "inside": [1, 3]}) == "1 picture given, 150 × 200, inside steps 1, 3"
    assert size_of({"something": 3, "prompts": [], "pictures": [], "strength": None}) == ""


def test_pictures_are_in_the_page_with_tabs_and_figures(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    source = report_html(run, tmp_path)
    assert_nothing_foreign(source)
    page = Page(source)
    assert page.tags.count("img") == 3
    for side in ("reference", "candidate"):
        data = (tmp_path / f"pictures/pipeline-plain.float32/{side}.00.png").read_bytes()
        assert base64.b64encode(data).decode() in source
    roles = [value for key, value in page.attributes if key == "role"]
    assert (roles.count("tablist"), roles.count("tab")) == (1, 4)
    ids = {value for key, value in page.attributes if key == "id"}
    assert {value for key, value in page.attributes if key in ("aria-controls", "aria-labelledby")} <= ids
    text = "".join(page.text)
    assert "Difference × 50" in text
    assert "RMSE, 0–255" in text
    assert f"{run['cases'][1]['pictures'][0]['metrics']['rmse']:.2f}" in text


def test_a_page_with_pictures_is_the_same_each_time_and_another_when_a_picture_is(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    first = report_html(run, tmp_path)
    assert first == report_html(copy.deepcopy(run), tmp_path)
    sample_run.pictured(tmp_path, dtypes=("float32",), off=9)
    assert first != report_html(run, tmp_path)


def test_pictures_that_are_not_there_are_said(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    (tmp_path / "pictures/pipeline-plain.float32/candidate.00.png").unlink()
    page = Page(report_html(run, tmp_path))
    assert page.tags.count("img") == 1
    text = "".join(page.text)
    assert "pictures/pipeline-plain.float32/candidate.00.png is not in the run folder." in text
    assert "It needs both pictures." in text
    text = "".join(Page(report_html(run)).text)
    assert text.count("made without its run folder") == 2


def test_the_run_folder_is_that_of_the_page(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    page = render_report(run, tmp_path / "report.html", force=False)
    assert Page(page.read_text(encoding="utf-8")).tags.count("img") == 3
    elsewhere = render_report(run, tmp_path / "sent" / "report.html", force=False, folder=tmp_path)
    assert elsewhere.read_bytes() == page.read_bytes()


def test_hostile_text_in_pictures_stays_text(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    case = run["cases"][1]
    case["name"] += sample_run.HOSTILE
    case["pictures"].append({"index": 0, "size": [], "reference": sample_run.HOSTILE, "candidate": None, "metrics": {}})
    case["inputs"]["prompts"] = [sample_run.HOSTILE]
    case["component"] = sample_run.HOSTILE
    assert_nothing_foreign(report_html(run, tmp_path))


def test_health_alerts_lead_to_their_checkpoints_and_passed_checks_are_named():
    run = sample_run.nonfinite(**SMALL)
    page = Page(report_html(run))
    text = "".join(page.text)
    assert "NaN or infinity in the candidate" in text
    assert "12 NaN and 0 infinite values, none in the reference" in text
    assert "checks passed" in text
    linked = {value for key, value in page.attributes if key == "data-name"}
    assert {"block.01.img.ffn", "block.01.txt.out"} <= linked
    assert ("class", "alert error") in page.attributes
    clean = Page(report_html(sample_run.clean(**SMALL)))
    assert ("class", "alert error") not in clean.attributes
    assert "No NaN or infinity in the candidate" in "".join(clean.text)
