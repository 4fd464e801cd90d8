"""Messages that kombu's Redis transport lost, read from the server's append-only file.

It takes a message by BRPOP and notes it as unacknowledged by a later HSET. A worker, or the server, that ends
between the two takes the message with it, before any code of a task has run.
"""

import base64
import json
from collections import defaultdict

UNACKED = b"unacked"
WRITTEN = {"appendonly": "yes", "auto_aof_rewrite_percentage": 0}  # settings of a server that can be read so


def lost(directory):
    """The tasks whose message was taken from a list and never noted: id -> (name, args)."""
    queues, taken = defaultdict(list), []
    for name, *words in _commands(directory):
        if name in {b"LPUSH", b"RPUSH"}:
            for message in words[1:]:
                at = 0 if name == b"LPUSH" else len(queues[words[0]])
                queues[words[0]].insert(at, message)
        elif name == b"RPOP":  # how BRPOP is written down
            taken.append(json.loads(queues[words[0]].pop()))
        elif name == b"HSET" and words[0] == UNACKED:
            noted = json.loads(words[2])[0]["properties"]["delivery_tag"]
            taken = [message for message in taken if message["properties"]["delivery_tag"] != noted]
    return {
        message["headers"]["id"]: (message["headers"]["task"], json.loads(base64.b64decode(message["body"]))[0])
        for message in taken
        if "id" in message["headers"]  # none has what workers tell each other
    }


def _commands(directory):
    for path in sorted(directory.glob("appendonlydir/*.incr.aof"), key=_number):
        with path.open("rb") as file:
            while head := file.readline():
                if head.startswith(b"*"):  # what is not, is a remark
                    yield [_word(file) for _ in range(int(head[1:]))]


def _word(file):
    word = file.read(int(file.readline()[1:]))
    file.readline()
    return word


def _number(path):
    return int(path.name.split(".")[-3])
