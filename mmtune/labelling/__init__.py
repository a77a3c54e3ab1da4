"""Ask people whether pairs match: `mmtune label` chooses the questions and shows them on a page; the answers are judgments."""
