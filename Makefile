# Shortcuts for people who work on crnn; CONTRIBUTING.md says what each is for.
PYTHON ?= python3

.PHONY: dev build test lint ctest asan docs wheel ci clean
dev:            ## editable install with everything the tests use
	$(PYTHON) -m pip install -e '.[test,plot,keras]'

build:          ## rebuild the extension in place after a change in csrc/, _kernels.pyx or kernels/
	$(PYTHON) setup.py build_ext --inplace

test:
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

ctest:          ## the C core alone
	$(MAKE) -C csrc test

asan:           ## the same under AddressSanitizer and UndefinedBehaviorSanitizer
	$(MAKE) -C csrc asan

docs:           ## docs/cli.md and docs/api.md from the code
	PYTHONPATH=. $(PYTHON) docs/generate.py

wheel:
	$(PYTHON) -m build

ci:
	bash .ci/run

clean:
	rm -rf build dist wheelhouse csrc/build crnn/_kernels*.so
