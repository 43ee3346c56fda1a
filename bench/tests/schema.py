"""Whether documents are as their schema says: schema.py SCHEMA FILE...; 1 and the reason of each that is not."""
import json
import pathlib
import sys

import jsonschema

schema, *files = map(pathlib.Path, sys.argv[1:])
schema = json.loads(schema.read_text())
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
assert files, "no document"
wrong = [(file, error) for file in files for error in validator.iter_errors(json.loads(file.read_text()))]
for file, error in wrong:
    print(f"{file}: {error.json_path}: {error.message[:200]}")
if wrong:
    sys.exit(1)
print(f"{len(files)} documents are as their schema says")
