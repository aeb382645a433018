"""A pytest plugin: writes one `outcome test-id` line for each test to the file OUTBOARD_OUTCOMES.

Outcomes are passed, failed, skipped, xfailed, xpassed and error (in set-up or tear-down). It also
lifts hypothesis's limit on the time of one example, which measures how busy the machine is.
"""

import os

import hypothesis

hypothesis.settings.register_profile("patient", deadline=None, derandomize=True)
hypothesis.settings.load_profile("patient")


def _outcome(report):
    expected_to_fail = hasattr(report, "wasxfail")
    if report.when != "call" and report.failed:
        return "error"
    if report.skipped:
        return "xfailed" if expected_to_fail else "skipped"
    if report.when != "call":
        return None
    if report.passed and expected_to_fail:
        return "xpassed"
    return report.outcome


def pytest_runtest_logreport(report):
    outcome = _outcome(report)
    if outcome:
        with open(os.environ["OUTBOARD_OUTCOMES"], "a") as out:
            name = report.nodeid.replace("\n", " ").split("/")[-1]
            out.write(f"{outcome} {name}\n")
