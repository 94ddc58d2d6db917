"""Gen-SSD: the teacher proposes each chunk of a chain of thought, and the student chooses one."""
