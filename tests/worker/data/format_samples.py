"""Rows of every form and variant with the sample that they become, and rows that are refused with the code."""

import json

from worker.data.formats.turns import Conversation, Preference

ASKED = {"role": "user", "content": "Why?"}
ANSWERED = {"role": "assistant", "content": "So."}
WORSE = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}
MORE = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "That."}]

ARGUMENTS = {"city": "Oslo", "days": 2}
CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4 degrees"}
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": FUNCTION}

ASKED_SHAREGPT = {"from": "human", "value": "Why?"}
ANSWERED_SHAREGPT = {"from": "gpt", "value": "So."}
CALL_TEXT = json.dumps({"name": "weather", "arguments": ARGUMENTS})
CALLED = CALLING | {"text": CALL_TEXT}
ASKED_AND_CALLED = [ASKED, CALLED, RESULT, ANSWERED]

PLAIN = Conversation([ASKED, ANSWERED])
BRIEF = Conversation([SYSTEM, ASKED, ANSWERED])
PAIR = Preference(Conversation([ASKED, ANSWERED], None, frozenset([0])), Conversation([ASKED, WORSE], None, frozenset([0])), 1)
BRIEF_PAIR = Preference(
    Conversation([SYSTEM, ASKED, ANSWERED], None, frozenset([0, 1])),
    Conversation([SYSTEM, ASKED, WORSE], None, frozenset([0, 1])),
    2,
)
LONGER_PAIR = Preference(
    Conversation([ASKED, ANSWERED, *MORE], None, frozenset([0, 1, 2])),
    Conversation([ASKED, ANSWERED, MORE[0], WORSE], None, frozenset([0, 1, 2])),
    3,
)

ROWS = {
    "sharegpt": [
        ({"conversations": [ASKED_SHAREGPT, ANSWERED_SHAREGPT]}, PLAIN),
        ({"conversation": [{"from": "user", "value": "Why?"}, {"from": "model", "value": "So."}], "id": "x"}, PLAIN),
        ({"texts": [{"from": "Human", "value": "Why?"}, {"from": "assistant", "value": "So."}]}, PLAIN),
        (
            {
                "messages": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "user", "value": "Why?", "weight": None},
                    {"from": "assistant", "value": "So.", "content": None, "role": None},
                ]
            },
            BRIEF,
        ),
        ({"conversations": [ASKED_SHAREGPT, ANSWERED_SHAREGPT], "system": "Be brief."}, BRIEF),
        ({"conversations": json.dumps([ASKED_SHAREGPT, ANSWERED_SHAREGPT]), "system": ""}, PLAIN),
        (
            {
                "conversations": [
                    ASKED_SHAREGPT,
                    {"from": "function_call", "value": CALL_TEXT},
                    {"from": "observation", "value": "4 degrees"},
                    ANSWERED_SHAREGPT,
                ],
                "tools": json.dumps([FUNCTION]),
            },
            Conversation(ASKED_AND_CALLED, [TOOL]),
        ),
        (
            {
                "conversations": [
                    ASKED_SHAREGPT,
                    {"from": "gpt", "value": "I look."},
                    {"from": "function_call", "value": CALL_TEXT},
                    {"from": "tool", "value": "4 degrees"},
                    ANSWERED_SHAREGPT,
                ]
            },
            Conversation(
                [ASKED, CALLED | {"content": "I look.", "text": f"I look.\n{CALL_TEXT}"}, RESULT, ANSWERED],
            ),
        ),
        (
            {"conversations": [ASKED_SHAREGPT, {"from": "function_call", "value": "weather(Oslo)"}]},
            Conversation([ASKED, {"role": "assistant", "content": "weather(Oslo)"}]),
        ),
        (
            {"conversations": [ASKED_SHAREGPT, ANSWERED_SHAREGPT | {"weight": 0}, ASKED_SHAREGPT, ANSWERED_SHAREGPT]},
            Conversation([ASKED, ANSWERED, ASKED, ANSWERED], None, frozenset([1])),
        ),
    ],
    "messages": [
        ({"messages": [ASKED, ANSWERED]}, PLAIN),
        ({"conversations": [SYSTEM | {"role": "developer"}, ASKED, ANSWERED], "tools": []}, BRIEF),
        ({"texts": [ASKED, ANSWERED], "tools": "null"}, PLAIN),
        (
            {"messages": [ASKED | {"content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]}, ANSWERED]},
            PLAIN,
        ),
        (
            {"messages": [ASKED, ANSWERED | {"weight": 0}, *MORE[:1], MORE[1] | {"weight": 1}]},
            Conversation([ASKED, ANSWERED, *MORE], None, frozenset([1])),
        ),
        (
            {
                "messages": [
                    ASKED,
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "call_1",
                                "type": "function",
                                "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)},
                            }
                        ],
                    },
                    RESULT | {"tool_call_id": "call_1", "name": "weather"},
                    ANSWERED,
                ],
                "tools": [TOOL | {"function": FUNCTION | {"description": None}}],
            },
            Conversation(
                [
                    ASKED,
                    CALLING | {"tool_calls": [{"id": "call_1"} | CALL]},
                    RESULT | {"tool_call_id": "call_1", "name": "weather"},
                    ANSWERED,
                ],
                [TOOL],
            ),
        ),
        (
            {
                "messages": [
                    ASKED,
                    {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": ARGUMENTS}},
                    {"role": "function", "content": "4 degrees"},
                    ANSWERED,
                ],
                "functions": [FUNCTION],
            },
            Conversation([ASKED, CALLING, RESULT, ANSWERED], [TOOL]),
        ),
        (
            {"messages": [ASKED, ANSWERED | {"reasoning_content": "Hm."}]},
            Conversation([ASKED, ANSWERED | {"reasoning_content": "Hm."}]),
        ),
    ],
    "alpaca": [
        ({"instruction": "Why?", "output": "So."}, PLAIN),
        ({"instruction": "Why?", "input": "", "output": "So.", "system": "Be brief."}, BRIEF),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "text": "unused"},
            Conversation([{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]),
        ),
    ],
    "prompt_completion": [
        ({"prompt": "Why?", "completion": "So."}, PLAIN),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, PLAIN),
        (
            {"prompt": [ASKED, ANSWERED, MORE[0]], "completion": [MORE[1]]},
            Conversation([ASKED, ANSWERED, *MORE], None, frozenset([1])),
        ),
    ],
    "instruction_response": [
        ({"instruction": "Why?", "response": "So."}, PLAIN),
        ({"question": "Why?", "answer": "So.", "system": "Be brief."}, BRIEF),
        ({"prompt": "Why?", "response": "So."}, PLAIN),
        (
            {"instruction": "Add.", "context": "1 2", "response": "3", "category": "sums"},
            Conversation([{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]),
        ),
    ],
    "text": [({"text": "Once upon a time", "id": 1}, "Once upon a time")],
    "preference": [
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, PAIR),
        ({"question": "Why?", "chosen": "So.", "rejected": "No.", "system": "Be brief."}, BRIEF_PAIR),
        ({"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."}, PAIR),
        ({"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [WORSE]}, PAIR),
        ({"prompt": [SYSTEM, ASKED], "chosen": [ANSWERED], "rejected": [WORSE]}, BRIEF_PAIR),
        ({"prompt": "Why?", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, WORSE], "score_chosen": 9.0}, PAIR),
        ({"chosen": [ASKED, ANSWERED, *MORE], "rejected": [ASKED, ANSWERED, MORE[0], WORSE]}, LONGER_PAIR),
        (
            {"conversations": [ASKED_SHAREGPT], "chosen": ANSWERED_SHAREGPT, "rejected": {"from": "gpt", "value": "No."}},
            PAIR,
        ),
        (
            {
                "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [ANSWERED],
                "non_preferred_output": [WORSE],
            },
            PAIR,
        ),
    ],
}


def refused_chats(*cases):
    return [("messages", {"messages": turns}, code) for turns, code in cases]


REFUSED = [
    ("sharegpt", {"conversations": []}, "no_turns"),
    ("sharegpt", {"conversations": None}, "unknown_format"),
    ("sharegpt", {"conversations": "[{"}, "unknown_format"),
    ("sharegpt", {"text": "x"}, "unknown_format"),
    ("sharegpt", {"conversations": ["Why?"]}, "wrong_type"),
    ("sharegpt", {"conversations": [{"from": "human", "value": 3}]}, "wrong_type"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "wrong_type"),
    ("sharegpt", {"conversations": [{"value": "Why?"}]}, "wrong_type"),
    ("sharegpt", {"conversations": [ASKED_SHAREGPT]}, "no_answer"),
    ("sharegpt", {"conversations": [ANSWERED_SHAREGPT]}, "no_question"),
    ("sharegpt", {"conversations": [ASKED_SHAREGPT, {"from": "gpt", "value": " \n"}]}, "empty_answer"),
    ("sharegpt", {"conversations": [ASKED_SHAREGPT, {"from": "narrator", "value": "x"}]}, "unknown_role"),
    ("sharegpt", {"conversations": [ASKED_SHAREGPT, ANSWERED_SHAREGPT], "tools": "[{"}, "wrong_type"),
    ("sharegpt", {"conversations": [ASKED_SHAREGPT, ANSWERED_SHAREGPT], "system": 3}, "wrong_type"),
    *refused_chats(
        ([ASKED, ANSWERED | {"content": None}], "wrong_type"),
        ([ASKED, ANSWERED | {"tool_calls": [{}]}], "wrong_type"),
        ([ASKED, ANSWERED | {"tool_calls": [{"function": {"name": "weather", "arguments": "{"}}]}], "wrong_type"),
        ([ASKED, ANSWERED | {"tool_calls": "weather"}], "wrong_type"),
        ([ASKED, ANSWERED | {"weight": 0.5}], "unsupported_field"),
        ([ASKED, ANSWERED | {"weight": 0}], "nothing_trained"),
        ([ASKED | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWERED], "unsupported_field"),
        ([ASKED, ANSWERED | {"audio": {"id": "x"}}], "unsupported_field"),
        ([ASKED, SYSTEM, ANSWERED], "misplaced_system"),
        ([ASKED, ANSWERED, ANSWERED], "repeated_answer"),
        ([RESULT, ANSWERED], "misplaced_tool"),
        ([ASKED, RESULT, ANSWERED], "misplaced_tool"),
        ([SYSTEM, ANSWERED], "no_question"),
        ([SYSTEM], "no_answer"),
        ([ASKED, CALLING, RESULT], "no_answer"),
        ([ASKED, ANSWERED, ASKED], "no_answer"),
        ([ASKED, ANSWERED | {"content": "\ud800"}], "invalid_text"),
    ),
    ("messages", {"messages": [ASKED, ANSWERED], "tools": [{"type": "function"}]}, "wrong_type"),
    ("messages", {"messages": [ASKED, ANSWERED], "tools": [{"name": "\ud800"}]}, "invalid_text"),
    ("alpaca", {"instruction": "Why?"}, "no_answer"),
    ("alpaca", {"output": "So."}, "unknown_format"),
    ("alpaca", {"instruction": "Why?", "output": ""}, "empty_answer"),
    ("alpaca", {"instruction": ["Why?"], "output": "So."}, "wrong_type"),
    ("prompt_completion", {"completion": "So."}, "unknown_format"),
    ("prompt_completion", {"prompt": "Why?"}, "no_answer"),
    ("prompt_completion", {"prompt": "Why?", "completion": " "}, "empty_answer"),
    ("prompt_completion", {"prompt": [ASKED], "completion": "So."}, "wrong_type"),
    ("prompt_completion", {"prompt": [ASKED, ANSWERED], "completion": []}, "no_turns"),
    ("prompt_completion", {"prompt": [ASKED], "completion": [ANSWERED | {"weight": 0}]}, "nothing_trained"),
    ("instruction_response", {"response": "So."}, "unknown_format"),
    ("instruction_response", {"instruction": "Why?"}, "no_answer"),
    ("instruction_response", {"instruction": "Why?", "response": ""}, "empty_answer"),
    ("text", {"text": "  "}, "empty_text"),
    ("text", {"text": 3}, "wrong_type"),
    ("text", {"body": "x"}, "unknown_format"),
    ("text", {"text": "\udcff"}, "invalid_text"),
    ("preference", {"prompt": "Why?", "chosen": "So."}, "no_answer"),
    ("preference", {"prompt": "Why?", "chosen": "So.", "rejected": ""}, "empty_answer"),
    ("preference", {"prompt": "Why?", "chosen": "So.", "rejected": "So."}, "equal_answers"),
    ("preference", {"prompt": "Why?", "chosen": "So.", "rejected": 3}, "wrong_type"),
    ("preference", {"chosen": "So.", "rejected": "No."}, "no_question"),
    ("preference", {"chosen": [ASKED, ANSWERED], "rejected": [MORE[0], WORSE]}, "different_prompts"),
    ("preference", {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, ANSWERED, *MORE]}, "different_prompts"),
    ("preference", {"prompt": [ASKED], "chosen": [], "rejected": [WORSE]}, "no_answer"),
]
