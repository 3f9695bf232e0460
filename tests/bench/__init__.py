"""The benchmark: relayd beside Postfix, in one run, with the same durability, load and next hop.

`python -m tests.bench` prints tables in Markdown. It asserts no speed: on shared cores only ratios mean something.
"""
