"""The knowledge base: what it knows, and that everything in it has a source."""

from importlib import resources

import pycountry
import pytest
import yaml

from intents.knowledge.base import knowledge
from intents.knowledge.words import fold, words

KNOWN = knowledge()


@pytest.mark.parametrize(
    "name",
    [
        "Germany",
        "germany",
        "Deutschland",
        "Allemagne",
        "Alemania",
        "Germania",
        "Alemanha",
        "Duitsland",
        "Niemcy",
        "German",
        "deutschen",
        "GERMANY",
    ],
)
def test_a_country_is_known_by_its_names_in_several_languages(name: str) -> None:
    assert KNOWN.areas[words(name)].codes == ("DE",)


@pytest.mark.parametrize(
    ("union", "size"),
    [
        ("EU", 27),
        ("EEA", 30),
        ("EFTA", 4),
        ("Schengen area", 29),
        ("Five Eyes", 5),
        ("G7", 7),
        ("NATO", 32),
        ("Benelux", 3),
        ("DACH", 3),
        ("Baltics", 3),
    ],
)
def test_a_union_has_its_members(union: str, size: int) -> None:
    assert len(KNOWN.areas[words(union)].codes) == size


def test_every_member_of_every_union_is_a_code_of_iso_3166_and_every_union_has_a_source_and_a_date() -> None:
    for area in {*KNOWN.areas.values(), *(each for found in KNOWN.several_areas.values() for each in found)}:
        assert area.source
        assert area.as_of
        for code in area.codes:
            found = pycountry.subdivisions.get(code=code) if "-" in code else pycountry.countries.get(alpha_2=code)
            assert found is not None or code == "XK"


@pytest.mark.parametrize(
    ("name", "country"),
    [
        ("München", "DE"),
        ("Muenchen", "DE"),
        ("Köln", "DE"),
        ("Cologne", "DE"),
        ("Genève", "CH"),
        ("Genf", "CH"),
        ("Wien", "AT"),
        ("Warszawa", "PL"),
        ("Lisboa", "PT"),
        ("København", "DK"),
        ("NYC", "US"),
    ],
)
def test_a_city_is_known_by_its_names_in_several_languages(name: str, country: str) -> None:
    assert country in {city.country for city in KNOWN.cities[words(name)]}


def test_a_cloud_region_tells_country_and_city() -> None:
    assert KNOWN.cloud_regions[words("eu-central-1")] == ("DE", ("frankfurt",))
    assert KNOWN.cloud_regions[words("europe-west9")] == ("FR", ("paris",))
    assert KNOWN.cloud_regions[words("westeurope")] == ("NL", ("amsterdam",))


def test_every_city_of_a_cloud_region_is_in_the_country_that_the_region_names() -> None:
    for code, (country, city) in KNOWN.cloud_regions.items():
        countries = {each.country for each in KNOWN.cities.get(city, ())}
        assert not countries or country in countries, code


def test_a_word_with_several_readings_is_no_plain_area() -> None:
    assert words("Europe") not in KNOWN.areas
    assert len(KNOWN.several_areas[words("Georgia")]) == 2


@pytest.mark.parametrize("name", ["unions", "countries", "cities", "cloud_regions", "concepts"])
def test_every_list_names_its_source_and_date(name: str) -> None:
    document = yaml.safe_load(resources.files("intents.knowledge").joinpath(f"{name}.yaml").read_text("utf-8"))
    lists = {"unions": document.get("unions", {}), "concepts": document}.get(name, {name: document})

    for title, listed in lists.items():
        text = str(listed)
        assert "source" in text, title
        assert "as_of" in text or "as_of" in document, title


@pytest.mark.parametrize(("text", "folded"), [("MÜNCHEN", "munchen"), ("Straße", "strasse"), ("Łódź", "lodz")])
def test_words_are_compared_without_case_and_accents(text: str, folded: str) -> None:
    assert fold(text) == folded
