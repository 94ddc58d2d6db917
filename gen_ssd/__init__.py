"""Gen-SSD: the student chooses how the teacher's reasoning continues."""
