"""Gen-SSD: the student chooses which chain of thought the teacher goes on writing."""
