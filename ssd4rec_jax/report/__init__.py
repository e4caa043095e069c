"""One HTML page that shows a run or a study to people, whole in itself."""
