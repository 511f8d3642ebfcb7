"""The changes that `tests/mutation.py` makes still have their places in the C core."""

import mutation
import pytest

if not (mutation.ROOT / "csrc").is_dir():
    pytest.skip("the C core is part of the checkout, not of the wheel", allow_module_level=True)


def test_every_change_made_by_hand_has_its_place():
    mutants = mutation.all_mutants()  # ends with a message that names the first that has not
    assert len(mutants) > len(mutation.BY_HAND) > 0
    assert all(mutant.before != mutant.after for mutant in mutants)
