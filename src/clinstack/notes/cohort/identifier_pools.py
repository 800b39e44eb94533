"""Words from which invented people, streets and hospitals are put together; everyday ones, some ordinary words too."""

from __future__ import annotations

_FIRST_OF_WOMEN = (
    "Mary Linda Patricia Barbara Susan Margaret Dorothy Lisa Nancy Karen Betty Helen Sandra Donna Carol Ruth Sharon "
    "Laura Sarah Kimberly Deborah Jessica Shirley Cynthia Angela Melissa Brenda Amy Anna Rebecca Virginia Kathleen "
    "Pamela Martha Debra Amanda Stephanie Carolyn Christine Marie Janet Catherine Frances Ann Joyce Diane Alice "
    "Julie Heather Teresa Doris Gloria Evelyn Jean Cheryl Mildred Joan Judith Rose Grace Hope Faith Joy May June "
    "April Ivy Olga Mei Yuki Fatima Aisha Priya Rosa Guadalupe Ines Siobhan Niamh Ingrid Svetlana Thandiwe"
)
_FIRST_OF_MEN = (
    "James John Robert Michael William David Richard Charles Joseph Thomas Christopher Daniel Paul Mark Donald "
    "George Kenneth Steven Edward Brian Ronald Anthony Kevin Jason Matthew Gary Timothy Jose Larry Jeffrey Frank "
    "Scott Eric Stephen Andrew Raymond Gregory Joshua Jerry Dennis Walter Patrick Peter Harold Douglas Henry Carl "
    "Arthur Ryan Roger Juan Jack Albert Jonathan Justin Terry Gerald Keith Samuel Willie Ralph Lawrence Nicholas "
    "Roy Benjamin Bruce Grant Rusty Bill Ali Hassan Wei Hiroshi Ravi Sanjay Dmitri Kwame Mateo Luis Sean Padraig"
)
_LAST = (
    "Smith Johnson Williams Jones Brown Davis Miller Wilson Moore Taylor Anderson Thomas Jackson White Harris "
    "Martin Thompson Garcia Martinez Robinson Clark Rodriguez Lewis Lee Walker Hall Allen Young Hernandez King "
    "Wright Lopez Hill Scott Green Adams Baker Gonzalez Nelson Carter Mitchell Perez Roberts Turner Phillips "
    "Campbell Parker Evans Edwards Collins Stewart Sanchez Morris Rogers Reed Cook Morgan Bell Murphy Bailey Rivera "
    "Cooper Richardson Cox Howard Ward Torres Peterson Gray Ramirez Watson Brooks Sanders Price Bennett Wood Barnes "
    "Ross Henderson Coleman Jenkins Perry Powell Long Patterson Hughes Flores Washington Butler Simmons Foster "
    "Bryant Alexander Russell Griffin Diaz Hayes O'Brien O'Connor McCarthy McDonald MacLeod Nguyen Tran Chen Wang "
    "Kim Park Patel Singh Khan Ahmed Cohen Goldberg Kowalski Nowak Ivanova Petrov Rossi Bianchi Schmidt Weber "
    "Fischer Dubois Okafor Mensah Tanaka Suzuki Yamamoto Haddad"
)
_STREETS = (
    "Maple Oak Cedar Pine Elm Walnut Chestnut Washington Lincoln Jefferson Madison Franklin Highland Prospect "
    "Pleasant Spring River Lake Hill Park Church School Main Center Union Summer Winter Orchard Meadow Forest "
    "Sunset Beacon Harvard"
)
_CITIES = (
    "Ashford Brookhaven Carlton Dunmore Eastfield Fairview Glenwood Harrowgate Ironton Kingsbury Lakemont Millbrook "
    "Northfield Oakdale Pinehurst Quincy Riverton Stonebridge Thornton Westbrook"
)
_HOSPITALS = (
    "Lakemont Riverton Stonebridge Millbrook Northfield Harrowgate Pinehurst Westbrook Dunmore Glenwood "
    "Saint_Brigid's St._Aldric's Mercy_Hill Holy_Rood Mount_Ararat Beth_Shalom Good_Shepherd Eastfield_Memorial "
    "Carver_County"
)
FIRST_NAMES = {"F": tuple(_FIRST_OF_WOMEN.split(" ")), "M": tuple(_FIRST_OF_MEN.split(" "))}
LAST_NAMES = tuple(_LAST.split(" "))
STREETS = tuple(_STREETS.split(" "))
CITIES = tuple(_CITIES.split(" "))
HOSPITALS = tuple(name.replace("_", " ") for name in _HOSPITALS.split(" "))
STATES = ("MA", "NH", "VT", "ME", "RI", "CT", "NY", "PA", "OH", "IL", "TX", "CA")
"""Two letters and not the name: state and county are no identifiers by themselves, an address is."""
