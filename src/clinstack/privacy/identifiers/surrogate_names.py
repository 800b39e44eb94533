"""Names that stand for names: each serves as a first and as a last name, so a word alone decides."""

from __future__ import annotations

_NAMES_WORDS = """
    Abbott Addison Alden Allard Ames Anson Archer Arden Ashby Aubrey Avery Baird Barclay Barrett Barton Baxter
    Beckett Blair Blake Bowen Boyd Bradford Brady Brannon Brooke Burke Burton Byrd Cadell Calder Carey Carlin Carson
    Chandler Clayton Colby Colton Conley Corbin Corey Dalton Darby Dawson Delaney Denton Devon Dixon Dorsey Drake
    Drew Dudley Easton Elden Ellery Elliott Ellis Emerson Emery Everett Farrell Fenton Finley Fletcher Flynn Forrest
    Gannon Garner Garrett Garrison Gibson Gilmore Graham Grayson Greer Hadley Halsey Harden Harley Harlow Harper
    Hartley Haven Hollis Holden Hunter Irving Jamison Jarvis Jensen Kane Keaton Keegan Kelby Kelsey Kendall Kerr
    Kirby Kipling Lamar Landon Larkin Lawson Leland Lennox Lester Linden Lindsay Logan London Lowell Lyle Lyndon
    Madden Marlow Marsden Mason Maxwell Merrill Milburn Monroe Morley Murray Nash Neville Nolan Norris Norton Oakley
    Palmer Paxton Payton Penn Porter Prescott Preston Quinlan Quinn Raleigh Ramsey Randall Reagan Reese Remington
    Reynold Rhodes Ridley Riley Rowan Royce Ryland Sawyer Selby Seward Shannon Shaw Shelby Sheridan Sherwood
    Sinclair Sloan Spencer Stafford Stanton Sterling Stratton Sutton Sydney Tanner Tate Teague Thatcher Tilden Tobin
    Travis Tripp Truman Tully Tyson Upton Vance Vaughan Wade Waverly Weldon Wells Whitley Whitman Wilder Willis
    Winslow Winston Wyatt York
"""
_PLACES_WORDS = """
    Alderbrook Amberley Appleford Barrowdale Bellwood Birchmere Blackthorn Bramblewick Briarcliff Canterwell
    Cloverdale Coldstream Cranmore Cresswell Dalewood Deerhurst Dovecote Elderbank Everdale Fallowfield Fenwick
    Foxglove Gatewick Glasmere Greystone Hartwell Hawthorne Hazelmere Heatherton Hollowbrook Ironwood Juniper
    Kestrel Larchmont Lindenhurst Longmere Marlbrook Merriweather Mossgate Netherby Oakhaven Oldbury Otterburn
    Partridge Pembrooke Quailridge Ravensmoor Redfern Rosedale Rushmere Saltmarsh Sedgefield Silverbirch Stillwater
    Stonecroft Summerfield Swallowfield Tamarack Thistledown Underhill Wetherby Whitcombe Willowmere Windermoor
    Woodlark Yarrow
"""
NAMES = tuple(_NAMES_WORDS.split())
PLACES = tuple(_PLACES_WORDS.split())
"""Streets, towns and hospitals."""
