"""The web studio's place; the studio itself comes in a later version."""

if __name__ == "__main__":
    print(
        "The web studio is not in this version of atomdiff; draw from the command line instead: "
        'atomdiff generate --concept outputs/dog/dog.safetensors "a sks dog on the beach" --out beach.png'
    )
