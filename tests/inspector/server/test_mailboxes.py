"""Messages that nobody fetches are counted, and are so many."""

import asyncio

from gradio.server_messages import EstimationMessage, ProcessCompletedMessage

from inspector.server.mailboxes import MESSAGE_BYTES, Mailbox, Mailboxes


def test_a_mailbox_knows_what_it_holds():
    boxes = Mailboxes(10)
    boxes["page"] = asyncio.Queue()
    box = boxes["page"]
    assert isinstance(box, Mailbox)
    assert box.bytes == 0
    first = EstimationMessage(queue_size=1)
    second = ProcessCompletedMessage(output={"data": ["x" * 50_000]}, success=True)
    box.put_nowait(first)
    assert box.bytes == MESSAGE_BYTES + 32  # no output is one value
    box.put_nowait(second)
    assert 50_000 < box.bytes < 55_000
    assert [box.get_nowait(), box.get_nowait()] == [first, second]
    assert box.bytes == 0
    boxes["page"] = box
    assert boxes["page"] is box
