"""Files of other kinds than pictures: DICOM and NIfTI."""
