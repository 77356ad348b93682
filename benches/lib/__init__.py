"""What benches/rivals, benches/targets and benches/growth share. Plain Python, standard library only.

machine   processors, caches, memory        programs   finding, installing, building, running
keys      key sets and exports of them      place      where a run keeps its files, and on which processors
server    a process that is measured        daemon, echo, redis, memcached, postgres   each of them
cases     what is asked of servers          stage      servers with the same keys, side by side
client    one load, by `keyward bench`      probe      one request, by this process
rounds    interleaved loads, and medians    options    what the command lines have in common
words     figures as text                   results    tables, and files of results
svg   bars and curves as SVG            target_*   the rows of benches/targets
"""
