"""The released Asclepius data set, and any table of notes, questions and answers, to instructions."""
