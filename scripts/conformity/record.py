"""Runs one of PyTorch's test files and writes what became of each test, as JSON: {"Class.test": "ok"}.

    record.py FILE RESULT.json [NAME]

NAME keeps to the tests whose name contains it.
"""

import importlib.util
import json
import sys
import traceback
import unittest


class Recorded(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.outcome = {}

    def put(self, test, what):
        # A test with subtests can say several things: the first that is not "ok" stays.
        name = ".".join(test.id().split(".")[-2:])
        if self.outcome.get(name, "ok") == "ok":
            self.outcome[name] = what

    def addSuccess(self, test):
        self.put(test, "ok")

    def addSkip(self, test, reason):
        self.put(test, "skipped: " + reason)

    def addExpectedFailure(self, test, err):
        self.put(test, "ok")

    def addUnexpectedSuccess(self, test):
        self.put(test, "unexpected success")

    def addFailure(self, test, err):
        self.put(test, "failed: " + "".join(traceback.format_exception(*err)))

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addFailure(test, err)


def names(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from names(test)
        else:
            yield test


def main():
    file, result, *name = sys.argv[1:]
    # torch.testing reads the command line when it is imported.
    sys.argv = [file]
    spec = importlib.util.spec_from_file_location("suite", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["suite"] = module
    spec.loader.exec_module(module)
    tests = unittest.TestSuite(
        test
        for test in names(unittest.defaultTestLoader.loadTestsFromModule(module))
        if not name or name[0] in test.id()
    )
    recorded = Recorded()


    def name_of(test):
        return ".".join(test.id().split(".")[-2:])

    def write(**running):
        with open(result, "w") as out:
            json.dump({**recorded.outcome, **running}, out, indent=1)

    # Written before and after every test: where the process crashes, the file tells in which.
    recorded.startTest = lambda test: write(**{name_of(test): "failed: the process crashed"})
    recorded.stopTest = lambda test: write()
    tests.run(recorded)
    write()


main()
