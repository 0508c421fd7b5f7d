"""What stands between strangers and the app: which files they may name, whose turn it is, what is kept how long.

blocks.py      the page's Blocks with everything below built in
gate.py        every HTTP request: routes, hosts, sizes, and what ends with a connection
connections.py connections without a request
admission.py   every file that a client names
queue.py       every event: how many wait, and who is next
rate.py        how often an address may open the page
mailboxes.py   what a page was sent and has not fetched
states.py      what gradio keeps of a page
turns.py       every use of a model: who gives way to whom, and what is given up
sweeper.py     what is kept of those who have gone
"""
