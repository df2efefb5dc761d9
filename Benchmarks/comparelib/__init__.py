"""The parts of Benchmarks/compare.

    processes    what a server and all it started have used: CPU, memory
    disk         the file that all serve: made, warmed, cooled, settled
    servers      ours, the peers and the floor, as command lines; one running server
    cells        what is measured: a pattern, block size, depth, connections, socket and client
    rounds       every cell with every server, interleaved, again and again
    life         start, memory, sparse copies
    allocations  heap allocations per request, by Benchmarks/allocations.c
    thresholds   Benchmarks/thresholds.tsv against what was measured
    report       Markdown from results
"""
