"""Every malformed setting and argument ends in one line that names it, and changes no file."""

import pytest
from zoo_settings import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace("\0", "NUL"))
def test_a_malformed_setting_is_refused(case, place, refused):
    case.make(place)
    refused(case.command, case.says)
