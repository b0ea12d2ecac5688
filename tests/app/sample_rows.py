"""Content that the tests of the API upload."""

import json

ROW = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
DATASET = (json.dumps(ROW) + "\n").encode() * 3
