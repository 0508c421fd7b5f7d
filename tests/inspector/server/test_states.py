"""What opening a page costs the server."""

import time

import gradio as gr
from gradio.state_holder import StateHolder

from inspector.server.states import LeanStates


def test_a_page_is_not_written_down_before_it_changes():
    with gr.Blocks(analytics_enabled=False) as demo:
        kept = gr.State([1])
        fields = [gr.Textbox(label=f"Text {n}") for n in range(300)]
    demo.state_session_capacity = 3
    seconds = []
    for holder in (StateHolder(), LeanStates()):
        holder.set_blocks(demo)
        began = time.perf_counter()
        page = holder["page"]
        seconds.append(time.perf_counter() - began)
        assert holder["page"] is page
        assert page[kept._id] == [1]
        assert page[fields[0]._id] is fields[0]
        page[kept._id] = [2]
        page[fields[1]._id] = new = gr.Textbox(label="New", value="text")
        assert page[fields[1]._id] is new
        page._update_value_in_config(fields[2]._id, "said")
        assert page.config_values[fields[2]._id]["props"]["value"] == "said"
        assert holder["page"][kept._id] == [2]
        assert holder["other"][kept._id] == [1]
    assert seconds[1] < seconds[0] / 3
    for number in range(5):
        holder[str(number)]
    assert len(holder.session_data) <= 4
    assert "page" not in holder
