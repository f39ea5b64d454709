"""The section of a report on the calibration of a reward model."""

from lmtrain.report import calibration


def test_section_has_the_error_the_bins_and_the_diagram(tmp_path):
    bins = [{'pairs': 3, 'confidence': 0.6, 'accuracy': 1 / 3}, {'pairs': 1, 'confidence': 0.95, 'accuracy': 1.0}]
    text = calibration.section({'error': 0.2125, 'bins': bins}, tmp_path)
    assert 'error 0.2125 over 4 pairs' in text and '| 0.600 | 0.333 | 3 |' in text and '(calibration.png)' in text
    assert (tmp_path / 'calibration.png').stat().st_size > 1000
