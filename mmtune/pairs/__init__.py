"""Where pairs come from: search logs, labels, catalogs, duplicates, recordings, human judgments and generators.

`mmtune pairs KIND SOURCE --out DIR` turns a source into a directory with

    pairs.parquet    query, item, grade, weight and carried columns, a row for each pair; a table that `mmtune pack` takes
    judgments.jsonl  {"query", "item", "grade"} a line: graded relevance that `mmtune eval --qrels` and `mine --judgments` read
    dropped.json     what of the source was not used: counts by reason, with the first examples
    pairs.json       the command's arguments, the hashes of its sources, and the counts; written last, so it marks completion

Each kind is a module of this room, with a public function (`mmtune.pairs_from_logs` ...) and a module `mmtune/cli/pairs_KIND.py`.
"""
