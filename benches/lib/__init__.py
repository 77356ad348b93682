"""Shared code of benches/rivals, benches/targets and benches/growth. Standard library only.

servers       groups of servers with the same keys      loadgen     one load, run by `keyward-bench`
server        base class: one server process            rounds      interleaved loads and their medians
daemon, echo, redis, memcached, postgres: the servers   probe       one request, sent by this process
cases         the load shapes that are measured         options     common command-line options
keys          key sets and their exports                results     result files and Markdown tables
workdir       a run's files and processors              format      figures as text
tools         external programs: find, install, run     svg         bar and line charts
machine       processors, caches, memory                target_*    the rows of benches/targets
"""
